"""Metrics of a run: written round by round, read back, and drawn."""

from __future__ import annotations

import fnmatch
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from fedagg._files import parsing

Row = dict[str, Any]

_FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes the metrics of a run to a folder, a line of JSON for each round.

    `with MetricsWriter("runs/1") as log: log.write(step, output.metrics)` adds lines
    `{"step": 0, "mean/weight": 7.0}` to `runs/1/metrics.jsonl`, each of them written
    out at once, so that a run that is killed keeps its rounds. A run that goes on adds
    to what is there; a line that was cut short is taken off first.

    JSON has no number for what is not finite: that is `"NaN"`, `"Infinity"` or
    `"-Infinity"`, and a float again with `read_metrics`.

    Args:
        folder: is made if it is not there.
        tensorboard: whether to write files for TensorBoard beside it. Needs
            `pip install 'fedagg[logs]'`.

    Raises:
        ImportError: if `tensorboard` and tensorboardX is not there.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, tensorboard: bool = False
    ) -> None:
        self._board = _board(folder) if tensorboard else None
        path = pathlib.Path(folder) / _FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one round.

        Args:
            step: its number.
            metrics: scalars by their names, an `Output`'s.

        Raises:
            ValueError: for a metric that is no scalar, or is called `step`.
        """
        numbers = {x: _number(x, y) for x, y in jax.device_get(dict(metrics)).items()}
        row = {"step": int(step)} | {x: _as_json(y) for x, y in numbers.items()}
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._file.flush()
        if self._board is not None:
            for name, x in numbers.items():
                self._board.add_scalar(name, x, int(step))
            self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads what a `MetricsWriter` wrote, as rows in the order of their steps.

    Of a step that was written twice, by a run that went on from before it, the last row
    counts. A last line that is still being written is left out.

    Args:
        path: the folder, or the file in it.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged, or a file of something else.
    """
    file = pathlib.Path(path)
    file = file / _FILE if file.is_dir() else file
    lines = file.read_bytes().split(b"\n")[:-1]
    with parsing(file, "lines that a MetricsWriter wrote"):
        rows = [{x: _from_json(y) for x, y in json.loads(z).items()} for z in lines]
        by_step = {row["step"]: row for row in rows}
        return [by_step[step] for step in sorted(by_step)]


def plot_metrics(
    rows: str | os.PathLike[str] | Sequence[Mapping[str, Any]], pattern: str = "*"
) -> Any:
    """Draws the metrics of a run over its rounds, a panel for each.

    What spans more than a factor of a hundred is drawn on a logarithmic axis, and what
    is not finite as a red cross at the lower edge. Save the figure with
    `plot_metrics("runs/1").savefig("metrics.png")`.

    Args:
        rows: the folder or file of a `MetricsWriter`, or dicts with a `step` each.
        pattern: of the names to draw, as `measurements/*`, where `*` is for any
            characters.

    Returns:
        A figure of Matplotlib.

    Raises:
        ValueError: if no metric has such a name.
        ImportError: without Matplotlib, which `pip install 'fedagg[logs]'` brings.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plot_metrics needs Matplotlib: pip install 'fedagg[logs]'."
        ) from error
    if isinstance(rows, (str, os.PathLike)):
        rows = read_metrics(rows)
    names = list(dict.fromkeys(x for row in rows for x in row if x != "step"))
    drawn = [x for x in names if fnmatch.fnmatchcase(x, pattern)]
    if not drawn:
        raise ValueError(f"pattern: no metric is like {pattern!r}; there are {names}.")
    columns = min(4, len(drawn))
    lines = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(3.5 * columns, 2.2 * lines), layout="constrained")
    for i, name in enumerate(drawn):
        points = [(row["step"], float(row[name])) for row in rows if name in row]
        axes = figure.add_subplot(lines, columns, i + 1)
        # A long name may reach over its panel, but is not to make it narrow.
        axes.set_title(name, fontsize="small").set_in_layout(False)
        _draw(axes, *np.array(points, np.float64).T)
    return figure


def _draw(axes: Any, steps: np.ndarray, values: np.ndarray) -> None:
    is_finite = np.isfinite(values)
    axes.plot(steps, np.where(is_finite, values, np.nan), ".-", markersize=3)
    lost = steps[~is_finite]
    if lost.size:
        edge = axes.get_xaxis_transform()
        axes.plot(lost, np.zeros_like(lost), "rx", transform=edge, clip_on=False)
    low = np.min(values, initial=np.inf, where=is_finite)
    high = np.max(values, initial=-np.inf, where=is_finite)
    if 0.0 < low < high / 100.0:
        axes.set_yscale("log")


def _board(folder: str | os.PathLike[str]) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard=True needs tensorboardX: pip install 'fedagg[logs]'."
        ) from error
    return SummaryWriter(os.fspath(folder))


def _number(name: str, x: Any) -> Any:
    if name == "step" or np.ndim(x):
        raise ValueError(
            f"metrics: expected scalars, none of them called 'step'; got {name!r} of "
            f"shape {np.shape(x)}."
        )
    return np.asarray(x).item()


def _as_json(x: Any) -> Any:
    if isinstance(x, float) and not math.isfinite(x):
        return "NaN" if math.isnan(x) else "Infinity" if x > 0.0 else "-Infinity"
    return x


def _from_json(x: Any) -> Any:
    return float(x) if isinstance(x, str) else x
