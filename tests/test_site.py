"""The site, built as `make docs` builds it: whole, without the network, findable."""

import html.parser
import inspect
import json
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from tests.test_api import doc
from tests.test_pages import PUBLIC

pytestmark = pytest.mark.thorough

ROOT = pathlib.Path(__file__).parents[1]


class Page(NamedTuple):
    anchors: set[str]
    links: list[str]
    loaded: list[str]  # scripts, styles, pictures
    text: str


class Reader(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.page = Page(set(), [], [], text)
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        for name in ("id", "name"):
            if given.get(name):
                self.page.anchors.add(given[name])
        if tag == "a" and given.get("href"):
            self.page.links.append(given["href"])
        loaded = given.get("href") if tag == "link" else given.get("src")
        if loaded and given.get("rel") not in ("next", "prev", "canonical"):
            self.page.loaded.append(loaded)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q"]
    done = subprocess.run(
        [*command, "docs", str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[pathlib.Path, Page]:
    return {x: Reader(x.read_text()).page for x in sorted(site.rglob("*.html"))}


def test_no_link_is_dead(site, pages):
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve()
            target = path if not parts.path else target
            fragment = unquote(parts.fragment)
            if not target.exists():
                dead.append(f"{path.relative_to(site)}: {link}")
            elif fragment and target in pages and fragment not in pages[target].anchors:
                dead.append(f"{path.relative_to(site)}: {link}")

    assert len(pages) > 30
    assert dead == []


def test_nothing_is_loaded_from_elsewhere(site, pages):
    elsewhere = {
        link
        for page in pages.values()
        for link in page.loaded
        if urlsplit(link).netloc or urlsplit(link).scheme not in ("", "data")
    }
    imported = [
        style
        for style in site.rglob("*.css")
        if re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text())
    ]

    assert elsewhere == set() and imported == []


def test_every_public_name_is_shown_with_what_its_docstring_has(pages):
    shown = {x.stem: page for x, page in pages.items() if x.parent.name == "api"}
    everything = "".join(page.text for page in shown.values())
    for module, names in PUBLIC.items():
        for name in names.__all__:
            parts = everything.split(f'id="{module}.{name}">')
            assert len(parts) == 2, f"{module}.{name}"
            entry = re.split(r'<dt class="sig', parts[1])[0]
            made_by = getattr(names, name)
            if not inspect.isfunction(made_by):
                continue
            for argument in inspect.signature(made_by).parameters:
                assert f'<span class="pre">{argument}</span>' in entry, (name, argument)
            for heading, title in (
                ("Args", "Parameters"),
                ("Raises", "Raises"),
                ("Reference", "Reference"),
            ):
                if re.search(rf"^{heading}:", doc(made_by), re.M):
                    assert re.search(rf">{title}(<|\s*:)", entry), (name, title)


def test_search_finds_where_a_name_is_documented(site):
    text = (site / "searchindex.js").read_text()
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    pages = index["docnames"]

    names = {name: rows for rows in index["objects"].values() for *_, name in rows}
    documents = {name: pages[row[0]] for *row, name in index["objects"]["fedagg"]}
    assert documents["clipping"] == "api/bounds" and "clipping" in names
    stems = index["terms"]["clip"]
    found = {pages[x] for x in ([stems] if isinstance(stems, int) else stems)}
    assert {"api/bounds", "choosing", "quickstart"} <= found


def test_tables_of_benchmarks_have_their_numbers(pages):
    [page] = [page for x, page in pages.items() if x.name == "benchmarks.html"]

    assert page.text.count("<table") == 21
    assert "AMD EPYC" in page.text and "jax 0.1" in page.text
