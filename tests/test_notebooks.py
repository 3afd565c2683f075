"""A script and a notebook are one pair, and the notebook says what its run showed."""

import base64
import json
import pathlib
import re

import pytest

from notebooks.store import names, read

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
LARGEST = 300_000  # bytes
pairs = pytest.mark.parametrize("name", names())


def stored(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def outputs(name):
    return [x for cell in stored(name)["cells"] for x in cell.get("outputs", [])]


def printed(name):
    return "".join("".join(x["text"]) for x in outputs(name) if "text" in x)


def test_every_notebook_has_a_script():
    notebooks = [x.stem for x in sorted(FOLDER.glob("*.ipynb"))]

    assert notebooks == names()
    assert len(notebooks) == 8


@pairs
def test_a_script_and_its_notebook_have_the_same_cells(name):
    script = read(name).cells

    cells = [(x["cell_type"], "".join(x["source"])) for x in stored(name)["cells"]]

    assert cells == [(x.cell_type, x.source) for x in script]


@pairs
def test_a_notebook_was_run_from_its_first_cell_to_its_last(name):
    code = [x for x in stored(name)["cells"] if x["cell_type"] == "code"]

    assert [x["execution_count"] for x in code] == list(range(1, len(code) + 1))


@pairs
def test_a_stored_notebook_has_a_picture_and_no_noise(name):
    size = (FOLDER / f"{name}.ipynb").stat().st_size
    kinds = [(x["output_type"], x.get("name")) for x in outputs(name)]
    images = [x["data"]["image/png"] for x in outputs(name) if "data" in x]

    assert set(kinds) <= {("stream", "stdout"), ("display_data", None)}
    assert images and base64.b64decode(images[-1]).startswith(b"\x89PNG")
    assert size < LARGEST
    assert not re.search(r"/(home|root|tmp|work|Users)/|\r", printed(name))
    for cell in stored(name)["cells"]:
        assert set(cell["metadata"]) <= {"lines_to_next_cell"}  # of the script
    assert set(stored(name)["metadata"]) == {"kernelspec", "language_info"}


@pairs
def test_a_notebook_ends_in_what_was_learnt_by_the_figures_of_its_run(name):
    last = stored(name)["cells"][-1]
    text = "".join(last["source"])
    shown = {float(x) for x in re.findall(r"\d+\.\d+", printed(name))}

    assert last["cell_type"] == "markdown"
    assert text.startswith("## What was learnt")
    for said in re.findall(r"\d+\.\d+", text):
        digits = len(said.split(".")[1])
        assert float(said) in {round(x, digits) for x in shown}, said
