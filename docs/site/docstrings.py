"""Docstrings of fedagg as Sphinx reads them: names, tables and references."""

import re
from typing import Any

import fedagg
import fedagg.secagg

_PUBLIC = {
    **{name: f"fedagg.{name}" for name in fedagg.__all__},
    **{name: f"fedagg.secagg.{name}" for name in fedagg.secagg.__all__},
}
_ANY = "~typing.Any"
_CALLABLE = "~collections.abc.Callable"
# What the code calls these, as an annotation that was worked out no longer says.
_ALIASES = {
    f"{_CALLABLE}[[{_CALLABLE}[[{_ANY}], {_ANY}], {_ANY}], {_ANY}]": "SumOver",
    f"{_CALLABLE}[[{_ANY}, int, ~jax.jaxlib._jax.Array | None], {_ANY}]": (
        "~fedagg.attacks.Attack"
    ),
    "~jax.jaxlib._jax.Array": "~jax.Array",
    "~jax._src.mesh.Mesh": "~jax.sharding.Mesh",
}


def setup(app: Any) -> None:
    # Before napoleon, which takes the sections out.
    app.connect("autodoc-process-docstring", _on_docstring, priority=100)
    app.connect("autodoc-process-signature", _on_signature)
    app.connect("autodoc-skip-member", _on_member)


def _on_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    text = "\n".join(with_tables(with_a_section_of_references(lines)))
    lines[:] = with_code(text).split("\n")


def _on_signature(app, what, name, obj, options, signature, returned):
    return shortened(signature), shortened(returned)


def _on_member(app, what, name, obj, skip, options) -> bool | None:
    """Fields of named tuples are in the docstrings, under Attributes."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def shortened(signature: str | None) -> str | None:
    """A signature whose types have the names that users know."""
    if signature is None:
        return None
    for long, short in _ALIASES.items():
        signature = signature.replace(long, short)

    def public(found: re.Match[str]) -> str:
        return _PUBLIC.get(found[1], found[0])

    return re.sub(r"fedagg\.(?:secagg\.)?_\w+(?:\.\w+)*\.(\w+)", public, signature)


def with_a_section_of_references(lines: list[str]) -> list[str]:
    """`Reference: a paper,` and the lines after it, as a section of its own."""
    out = []
    for line in lines:
        found = re.match(r"Reference: (.*)", line)
        out += ["Reference:", f"    {found[1]}"] if found else [line]
    return out


def with_code(text: str) -> str:
    """Backquotes around what is no name become code, and bars are only bars."""
    out = []
    for i, part in enumerate(re.split(r"`([^`]*)`", text)):
        if i % 2 == 0:
            part = re.sub(r"(?<!\\)\|", r"\\|", part)
            out.append(re.sub(r"^(?=\w)", r"\\ ", part) if i else part)
        elif re.fullmatch(r"[A-Za-z_][\w.]*", part):
            out.append(f"`{part}`")
        else:
            out.append(f"``{' '.join(part.split())}``")
    return "".join(out)


def with_tables(lines: list[str]) -> list[str]:
    """Tables as Markdown has them become those of reStructuredText."""
    out, table = [], []
    for line in [*lines, ""]:
        if line.lstrip().startswith("|"):
            table.append(line)
            continue
        if table:
            out += _list_table(table)
            table = []
        out.append(line)
    return out[:-1]


def _list_table(table: list[str]) -> list[str]:
    indent = table[0][: len(table[0]) - len(table[0].lstrip())]
    cells = [re.split(r"(?<!\\)\|", x.strip()[1:-1]) for x in table]
    rows = [[x.strip() for x in row] for row in cells]
    has_header = any(rows[0])
    kept = [*rows[:1], *rows[2:]] if has_header else rows[2:]
    width = max(map(len, kept))
    out = [".. list-table::", f"   :header-rows: {int(has_header)}", ""]
    for row in kept:
        marks = ["   * - ", *["     - "] * (width - 1)]
        row = row + [""] * (width - len(row))
        out += [mark + cell for mark, cell in zip(marks, row, strict=True)]
    return [indent + x if x else x for x in ["", *out, ""]]
