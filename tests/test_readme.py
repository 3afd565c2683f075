"""The README's snippets run as shown, one after the other, and say what it says."""

import pathlib
import re

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_the_snippets_run_and_print_what_is_shown(capsys):
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shown = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    names = {}

    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)

    assert len(snippets) == 14
    assert capsys.readouterr().out == "".join(shown)


def test_the_first_example_has_fifteen_lines_or_so():
    first = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]

    assert len(first.strip().splitlines()) <= 18


def test_the_table_names_everything_that_is_public():
    import fedagg
    import fedagg.secagg

    table = README.split("## What there is")[1].split("## How it is built")[0]

    names = [*fedagg.__all__, *fedagg.secagg.__all__]
    assert [name for name in names if f"`{name}" not in table] == []
