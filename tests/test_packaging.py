"""What is released: the version and its notes, and a wheel that installs alone."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import yaml

import fedagg
from tools.release_notes import notes_of

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [
    line.rsplit(" ", 1)[1]
    for line in PROJECT["classifiers"]
    if re.search(r":: 3\.\d+$", line)
]

CHANGELOG = """# Changelog

## Unreleased

## 0.2.0 (2026-11-27)

### Added

- A thing.

## 0.1.0

- The first.
"""

FIRST_ROUND = """
import fedagg
import jax.numpy as jnp
assert "site-packages" in fedagg.__file__, fedagg.__file__
robust = fedagg.robust_aggregator()
clients = {"w": jnp.full((3, 2), 0.3).at[1].set(jnp.nan)}
state = robust.init({"w": jnp.zeros(2)})
state, mean, metrics = robust.next(state, clients, jnp.ones(3))
assert jnp.allclose(mean["w"], 0.2)  # of three, one of whom is zero
print(fedagg.__version__, metrics["zeroing/count"])
"""


def run(*command, **more) -> str:
    done = subprocess.run(
        [str(x) for x in command], capture_output=True, text=True, **more
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())

    assert citation["version"] == fedagg.__version__
    assert citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


@pytest.mark.parametrize(
    ("version", "notes"),
    [("0.2.0", "### Added\n\n- A thing."), ("0.1.0", "- The first.")],
)
def test_the_notes_of_a_tag_are_what_the_changelog_says_of_its_version(version, notes):
    assert notes_of(f"v{version}", CHANGELOG, version) == notes


@pytest.mark.parametrize(
    ("tag", "version", "why"),
    [
        ("v0.1.0", "0.2.0", "Expected the tag v0.2.0"),
        ("0.2.0", "0.2.0", "Expected the tag v0.2.0"),
        ("v0.3.0", "0.3.0", "has nothing on 0.3.0"),
        ("v0.2", "0.2", "has nothing on 0.2:"),
        ("vUnreleased", "Unreleased", "has nothing on Unreleased"),
    ],
)
def test_a_tag_without_notes_or_of_another_version_is_refused(tag, version, why):
    with pytest.raises(ValueError, match=why):
        notes_of(tag, CHANGELOG, version)


def test_the_pythons_of_the_classifiers_are_those_that_the_package_allows():
    least, end = re.findall(r"3\.(\d+)", PROJECT["requires-python"])

    assert PYTHONS == [f"3.{minor}" for minor in range(int(least), int(end))]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """As `python -m build` makes it: the source first, and the wheel from that."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.deep
def test_the_wheel_has_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()

    assert wheel.name.startswith(f"fedagg-{fedagg.__version__}-py3-none-any")
    assert {x.split("/")[0] for x in names} == {
        "fedagg",
        f"fedagg-{fedagg.__version__}.dist-info",
    }
    here = {
        str(x.relative_to(ROOT))
        for x in (ROOT / "fedagg").rglob("*")
        if x.is_file() and "__pycache__" not in x.parts
    }
    assert {x for x in names if x.startswith("fedagg/")} == here


def environment(python: str, wheel: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """That Python with the wheel and what it asks for, in a new environment."""
    interpreter = shutil.which(f"python{python}")
    assert interpreter, f"python{python} is not there: each that is supported has to be"
    alone = folder / "bin" / "python"
    run(interpreter, "-m", "venv", folder)
    run(alone, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    return alone


@pytest.fixture(scope="module")
def environments(wheel, tmp_path_factory) -> Iterator[dict[str, Future[pathlib.Path]]]:
    """One for each Python, made at once: installing waits for the network."""
    folders = {x: tmp_path_factory.mktemp("venv") for x in PYTHONS}
    with ThreadPoolExecutor(len(PYTHONS)) as pool:
        yield {x: pool.submit(environment, x, wheel, folders[x]) for x in PYTHONS}


@pytest.mark.deep
@pytest.mark.parametrize("python", PYTHONS)
def test_the_wheel_alone_runs_a_round_without_a_warning(python, environments, tmp_path):
    alone = environments[python].result()

    shown = run(
        *[alone, "-W", "error", "-c", FIRST_ROUND],
        cwd=tmp_path,
        env={"JAX_PLATFORMS": "cpu"},
    )

    assert shown.split() == [fedagg.__version__, "1.0"]
