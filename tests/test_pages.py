"""Pages run as shown, one snippet after the other, and say what is so."""

import pathlib
import re

import pytest

import fedagg
import fedagg.attacks
import fedagg.secagg
from tests.test_api import MODULES, imports_of

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "docs/design.md", "docs/guarantees.md"]
PAGES += ["docs/style.md", "docs/tff_tutorial.md"]

every_page = pytest.mark.parametrize("page", PAGES)


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def snippets_of(page: str) -> list[tuple[str, str]]:
    """Python blocks, each with the text block right after it, which may be missing."""
    block = r"```python\n(.*?)```\n(?:\s*```text\n(.*?)```\n)?"
    return re.findall(block, text_of(page), re.DOTALL)


@every_page
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
    links = re.findall(r"\]\(([^)#:]+)\)", text_of(page))

    folder = (ROOT / page).parent
    assert [x for x in links if not (folder / x).exists()] == []


@every_page
def test_the_files_that_a_page_names_are_there(page):
    names = re.findall(r"`((?:fedagg|tests|benchmarks|docs)/[\w/.]+)`", text_of(page))

    assert [x for x in names if not (ROOT / x).exists()] == []


def test_the_first_example_has_fifteen_lines_or_so():
    first, _ = snippets_of("README.md")[0]

    assert len(first.strip().splitlines()) <= 18


def test_the_table_names_everything_that_is_public():
    table = text_of("README.md").split("## What there is")[1].split("\n## ")[0]

    names = [*fedagg.__all__, *fedagg.attacks.__all__, *fedagg.secagg.__all__]
    assert [x for x in names if not re.search(rf"`{x}\b", table)] == []


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
