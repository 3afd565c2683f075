"""Tables as pictures: how many plain reads a round costs, and how that grows."""

from pathlib import Path

from benchmarks.measuring import Measured
from benchmarks.table import Cell, Line

Point = tuple[str, str, float]  # aggregator, way to sum, ratio to the plain read
# What grows, what is fixed, the steps, and for each curve its milliseconds.
Panel = tuple[str, str, list[int], dict[str, list[float]]]

_STYLES = {"plain read": "k--", "mean": "tab:blue", "robust": "tab:red"}
_MARKERS = {"1 leaf": "o", "6 leaves": "s", "150 leaves": "^"}

_MARKS = {
    "default": ("tab:red", "D"),
    "at_once()": ("tab:orange", "s"),
    "in_chunks(1)": ("#08519c", "o"),
    "in_chunks(8)": ("#3182bd", "o"),
    "in_chunks(64)": ("#9ecae1", "o"),
    "by hand": ("black", "x"),
    "by hand, folded": ("black", "+"),
    "DrJAX": ("tab:green", "^"),
    "Optax": ("tab:purple", "v"),
    "JAX-Privacy": ("tab:brown", "<"),
    "JAX-Privacy (8)": ("tab:brown", ">"),
}


def draw(cells: list[tuple[Cell, list[Line]]], title: str, path: Path) -> None:
    """One panel for each size and tree; a row an aggregator, a mark a way to sum.

    Raises:
        ImportError: without matplotlib, which comes with fedagg[bench].
    """
    sizes = list(dict.fromkeys(cell.size for cell, _ in cells))
    trees = list(dict.fromkeys(cell.leaves for cell, _ in cells))
    figure = _figure(3.0 + 3.5 * len(trees), 1.6 + 2.5 * len(sizes), title)
    panels = figure.subplots(
        len(sizes), len(trees), sharex=True, sharey=True, squeeze=False
    )
    points = {cell: _points(lines) for cell, lines in cells}
    names = list(dict.fromkeys(name for part in points.values() for name, *_ in part))
    handles = {}
    for cell, part in points.items():
        panel = panels[sizes.index(cell.size)][trees.index(cell.leaves)]
        handles |= _fill(panel, names, part)
        panel.set_title(str(cell), fontsize=9)
    for panel in panels[-1]:
        panel.set_xlabel("time / plain read")
    largest = max((x for part in points.values() for *_, x in part), default=1.0)
    panels[0][0].set_xlim(0.7, 1.5 * largest)
    ways = [way for way in _MARKS | handles if way in handles]
    _finish(figure, {way: handles[way] for way in ways}, 2 + 2 * len(trees), path)


def draw_curves(panels: list[Panel], title: str, path: str) -> None:
    """One panel for each of what grows; a line for each tree and aggregator.

    Raises:
        ImportError: without matplotlib, which comes with fedagg[bench].
    """
    figure = _figure(4.5 * len(panels), 4.5, title)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    handles = {}
    for axis, (grows, fixed, steps, curves) in zip(axes, panels, strict=True):
        for i, (name, milliseconds) in enumerate(curves.items()):
            style = _STYLES.get(name.split(",")[0], f"C{i % 10}")
            marker = _MARKERS.get(name.split(", ")[-1], "" if i < 10 else "o")
            (handles[name],) = axis.loglog(steps, milliseconds, style, marker=marker)
        axis.set_title(f"at {fixed}", fontsize=9)
        axis.set_xlabel(grows)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms")
    _finish(figure, handles, 4, path)


def _figure(width: float, height: float, title: str):
    """A figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=110)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    return figure


def _finish(figure, handles: dict, columns: int, path: Path | str) -> None:
    """Puts the legend below the panels, and writes the file."""
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="lower center",
        ncols=columns,
        fontsize=8,
        frameon=False,
    )
    figure.tight_layout(rect=(0.0, 0.7 / figure.get_figheight(), 1.0, 1.0))
    figure.savefig(path)


def _points(lines: list[Line]) -> list[Point]:
    return [
        (line.aggregator, line.way, line.measured.ratio)
        for line in lines
        if isinstance(line.measured, Measured)
    ]


def _fill(panel, names: list[str], points: list[Point]) -> dict:
    """Draws one panel; returns a handle for each way to sum."""
    handles = {}
    for name, way, ratio in points:
        color, marker = _MARKS.get(way, ("tab:gray", "P"))
        default = way == "default"
        handles[way] = panel.scatter(
            ratio,
            names.index(name),
            s=60 if default else 35,
            c=color,
            marker=marker,
            alpha=0.85,
            zorder=2 if default else 3,
        )
    panel.axvline(1.0, color="gray", linewidth=1.0)
    panel.set_xscale("log")
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(axis="x", alpha=0.3)
    return handles
