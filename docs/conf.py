"""How Sphinx makes the site: offline, from these pages, docstrings and records."""

import pathlib
import shutil

# Sphinx runs in the folder above, of which these are packages.
from benchmarks.page import tables
from docs.site import docstrings, folders, records

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent

project = "fedagg"
copyright = "the fedagg authors"
extensions = [
    *("myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"),
]
exclude_patterns = ["site"]

# Markdown pages, and notebooks with the outputs that they are stored with.
nb_execution_mode = "off"
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]

# Docstrings: names in single backquotes are links where there is such a name.
default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Reference", "Reference")]
autodoc_typehints_format = "short"
autodoc_mock_imports = ["flwr"]  # cannot be installed beside what makes the site
autodoc_preserve_defaults = True
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
add_module_names = False
python_maximum_signature_line_length = 80
# Code in backquotes, types of other packages, and types that have no public name.
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:(class|data|exc)", r"fedagg\..*\b_.*|(?!fedagg).*"),
]

html_theme = "sphinx_book_theme"
html_title = "fedagg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"use_download_button": False, "show_toc_level": 2}
html_show_sourcelink = False


def bring_notebooks() -> None:
    """Copies notebooks, which lie beside the pages and not among them."""
    folder = HERE / "notebooks"
    for old in folder.glob("*.ipynb"):
        old.unlink()
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, folder)


bring_notebooks()


def without_an_empty_list(app, page: str, text: list[str]) -> None:
    """A list of notebooks where there are none is a warning to Sphinx."""
    if page == "notebooks/index" and not list(HERE.glob("notebooks/*.ipynb")):
        text[0] = text[0].split("```{toctree}")[0]


def setup(app) -> None:
    app.connect("source-read", without_an_empty_list)
    docstrings.setup(app)
    folders.setup(app)
    records.setup(app, tables(ROOT / "benchmarks" / "results"))
