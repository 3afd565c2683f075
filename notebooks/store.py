"""Runs notebooks and stores what they show beside their scripts.

    python -m notebooks.store [first_lesson ...]

Without names all are run. A notebook that warns is not stored, nor what would differ
from run to run without a reason: progress bars, times, random identifiers.
"""

import os
import pathlib
import sys
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_notebook

FOLDER = pathlib.Path(__file__).parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def names() -> list[str]:
    """The scripts that are one half of a pair."""
    scripts = sorted(FOLDER.glob("*.py"))
    return [x.stem for x in scripts if x.read_text().startswith("# %% [markdown]")]


def read(name: str) -> nbformat.NotebookNode:
    """The notebook of a script, before it is run."""
    script: Any = jupytext.read(FOLDER / f"{name}.py")
    return new_notebook(cells=script.cells)


def run(name: str) -> nbformat.NotebookNode:
    """The notebook of a script, with what it shows.

    Raises:
        CellExecutionError: if a cell does.
        RuntimeError: if a cell warns.
    """
    notebook = read(name)
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    where = {"metadata": {"path": str(FOLDER)}}
    ran = NotebookClient(
        notebook, resources=where, record_timing=False, coalesce_streams=True
    ).execute()
    # The kernel tells more of the language than two machines agree on.
    ran.metadata["language_info"] = {"name": "python"}
    for cell in ran.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise RuntimeError(f"{name}: {output.text}")
    return ran


def main() -> None:
    os.environ["TQDM_DISABLE"] = "1"
    for name in sys.argv[1:] or names():
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(run(name), path)
        print(f"{path.relative_to(FOLDER.parent)}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
