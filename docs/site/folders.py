"""The picture of the folders, drawn from the arrows that `docs/design.md` lists."""

import html
import re
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

_WIDTH, _HEIGHT, _ROW, _COLUMN = 118, 28, 66, 140


class Mermaid(SphinxDirective):
    """A graph as `a --> b & c` lines, as boxes and lines without a script."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        picture = svg(arrows_of("\n".join(self.content)))
        return [nodes.raw("", f'<div class="folders">{picture}</div>', format="html")]


def setup(app: Any) -> None:
    app.add_directive("mermaid", Mermaid)


def arrows_of(text: str) -> dict[str, list[str]]:
    found = re.findall(r"^\s*(\w+) --> ([\w &]+)$", text, re.M)
    return {importer: imported.split(" & ") for importer, imported in found}


def levels_of(arrows: dict[str, list[str]]) -> dict[str, int]:
    """How far each is above what imports nothing."""

    def level(part: str) -> int:
        return max((1 + level(x) for x in arrows.get(part, [])), default=0)

    return {x: level(x) for x in {*arrows, *(y for z in arrows.values() for y in z)}}


def svg(arrows: dict[str, list[str]]) -> str:
    levels = levels_of(arrows)
    rows: list[list[str]] = [[] for _ in range(1 + max(levels.values()))]
    order = [*arrows, *sorted(set(levels) - set(arrows))]
    for part in order:
        rows[levels[part]].append(part)
    width = _COLUMN * max(map(len, rows))
    places = {
        part: (
            (i + 0.5) * width / len(row),
            _ROW * (len(rows) - 1 - level) + _HEIGHT,
        )
        for level, row in enumerate(rows)
        for i, part in enumerate(row)
    }
    lines = [
        _line(places[importer], places[imported])
        for importer, group in arrows.items()
        for imported in group
    ]
    boxes = [_box(part, *place) for part, place in places.items()]
    size = f"{width:.0f} {_ROW * len(rows):.0f}"
    return (
        f'<svg viewBox="0 0 {size}" role="img" aria-label="folders and what they '
        f'may import">{"".join(lines + boxes)}</svg>'
    )


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (to_x, to_y) = start, end
    y, to_y = y + _HEIGHT / 2, to_y - _HEIGHT / 2
    middle = (to_y - y) / 2
    curve = f"M{x:.0f},{y:.0f} C{x:.0f},{y + middle:.0f} {to_x:.0f},{to_y - middle:.0f}"
    return f'<path class="line" d="{curve} {to_x:.0f},{to_y:.0f}"/>'


def _box(part: str, x: float, y: float) -> str:
    left, top = x - _WIDTH / 2, y - _HEIGHT / 2
    return (
        f'<rect class="box" x="{left:.0f}" y="{top:.0f}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" rx="5"/><text x="{x:.0f}" y="{y + 4:.0f}" '
        f'text-anchor="middle">{html.escape(part)}</text>'
    )
