"""Pages run as shown, one snippet after the other, and say what is so."""

import collections
import json
import pathlib
import re

import pytest

import fedagg
import fedagg.algorithms
import fedagg.attacks
import fedagg.metrics
import fedagg.secagg
from tests.helpers import first_now
from tests.test_api import CORE, MODULES, imports_of

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ["README.md", "docs/quickstart.md", "CONTRIBUTING.md"]  # as they are read
PAGES += sorted({str(x.relative_to(ROOT)) for x in DOCS.rglob("*.md")} - {*PAGES})
PUBLIC = {
    "fedagg": fedagg,
    "fedagg.algorithms": fedagg.algorithms,
    "fedagg.attacks": fedagg.attacks,
    "fedagg.metrics": fedagg.metrics,
    "fedagg.secagg": fedagg.secagg,
}
# These are looked at where Flower is, in tests/flower.
OF_FLOWER = {"fedagg.flower.FedAgg", "fedagg.flower.fedagg_mod"}
PEERS = json.loads((ROOT / "tests/data/public_names.json").read_text())

every_page = pytest.mark.parametrize("page", PAGES)
every_peer = pytest.mark.parametrize("peer", PEERS)


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def snippets_of(page: str) -> list[tuple[str, str]]:
    """Python blocks, each with the text block right after it, which may be missing."""
    block = r"```python\n(.*?)```\n(?:\s*```text\n(.*?)```\n)?"
    return re.findall(block, text_of(page), re.DOTALL)


def documented() -> dict[str, str]:
    """Per name that a page of `docs/api` has, what the page adds to its docstring."""
    found: dict[str, str] = {}
    for page in sorted((DOCS / "api").glob("*.md")):
        module = name = ""
        for line in page.read_text().splitlines():
            if here := re.match(r"\.\. currentmodule:: ([\w.]+)$", line):
                module = here[1]
            elif entry := re.match(r"\.\. auto\w+:: (\w+)$", line):
                name = f"{module}.{entry[1]}"
                assert name not in found, f"{name} is documented twice"
                found[name] = ""
            elif line.startswith("   ") and name:
                found[name] += line
    return found


@first_now("page", PAGES, quick=2)
def test_the_snippets_run_and_print_what_is_shown(page, capsys):
    names = {}

    for snippet, shown in snippets_of(page):
        exec(compile(snippet, page, "exec"), names)

        assert capsys.readouterr().out == shown, snippet


@every_page
def test_nothing_is_shown_that_no_snippet_prints(page):
    shown = [x for _, x in snippets_of(page) if x]

    assert text_of(page).count("```text") == len(shown)


@every_page
def test_what_a_page_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text_of(page))

    folder = (ROOT / page).parent
    assert [x for x in links if not (folder / x).exists()] == []


@every_page
def test_the_files_that_a_page_names_are_there(page):
    names = re.findall(r"`((?:fedagg|tests|benchmarks|docs)/[\w/.]+)`", text_of(page))

    assert [x for x in names if not (ROOT / x).exists()] == []


def test_the_readme_is_a_screen_and_a_half_with_an_example_of_twelve_lines():
    [(example, _)] = snippets_of("README.md")

    assert len(text_of("README.md").splitlines()) <= 90
    assert len([line for line in example.splitlines() if line]) <= 12


def test_every_public_name_is_documented_once():
    names = {f"{x}.{name}" for x, module in PUBLIC.items() for name in module.__all__}

    assert set(documented()) == names | OF_FLOWER


def test_every_technique_has_its_formula():
    missing = []
    for path, added in documented().items():
        if path in OF_FLOWER:
            assert "**Formula.** " in added
            continue
        module, name = path.rsplit(".", 1)
        made_by = getattr(PUBLIC[module], name)
        where = str(getattr(made_by, "__module__", "")).removeprefix("fedagg.")
        is_a_function = type(made_by).__name__ == "function"
        if is_a_function and where not in CORE and not where.startswith("secagg"):
            if path not in SAID_IN_WORDS and "**Formula.** " not in added:
                missing.append(path)

    assert missing == []


# What these do has a source, and is a list of what is sent or a promise.
SAID_IN_WORDS = {"fedagg.without_guarantee"}


@every_peer
def test_every_public_name_of_a_peer_is_on_the_page_for_who_comes_from_there(peer):
    code = re.findall(r"`([^`\n]+)`", text_of(f"docs/coming_from/{peer}.md"))
    said = collections.Counter(word for x in code for word in re.findall(r"\w+", x))

    assert [name for name in PEERS[peer]["names"] if not said[name]] == []


@every_peer
def test_what_a_page_says_is_ours_is_ours(peer):
    """The last column of a table of names calls functions that are public."""
    rows = re.findall(r"^\|.*\| (.*) \|$", text_of(f"docs/coming_from/{peer}.md"), re.M)
    called = {
        x
        for row in rows
        for x in re.findall(r"`(?:algorithms\.|attacks\.|metrics\.)?([a-z_]+)\(", row)
    }

    names = {name for module in PUBLIC.values() for name in module.__all__}
    assert called - names - {"init", "fold_in", "client_work"} == set()


def test_the_picture_of_the_folders_has_every_import():
    arrows = dict(
        re.findall(r"^    (\w+) --> ([\w &]+)$", text_of("docs/design.md"), re.M)
    )
    found = {
        (module.split(".")[0], imported.split(".")[0])
        for module in MODULES
        for imported in imports_of(module)
    }

    for importer, imported in found:
        if importer != imported and "__init__" not in (importer, imported):
            assert imported in _reached(arrows, importer), f"{importer} --> {imported}"


def _reached(arrows: dict[str, str], part: str) -> set[str]:
    reached = set()
    for x in arrows.get(part, "").split(" & "):
        reached |= {x} | (_reached(arrows, x) if x else set())
    return reached
