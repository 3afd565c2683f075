"""Tables of recorded benchmarks: the directive `records`, by name."""

from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


def setup(app: Any, tables: dict[str, str]) -> None:
    class Records(SphinxDirective):
        """Puts a table of records where it stands, as the Markdown it is."""

        required_arguments = 1

        def run(self) -> list[nodes.Node]:
            name = self.arguments[0]
            if name not in tables:
                raise self.error(f"no table {name!r}, there are {sorted(tables)}")
            return self.parse_text_to_nodes(tables[name])

    app.add_directive("records", Records)
