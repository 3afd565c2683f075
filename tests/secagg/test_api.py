"""The public names of the subpackage, and their docstrings."""

import inspect
import pathlib
import re
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from fedagg import secagg
from tests.test_api import doc, entries, parameters, section

CLASSES = {
    name: getattr(secagg, name)
    for name in ("Client", "Demands", "Ledger", "Plan", "Server", "ProtocolError")
}
CALLABLES: dict[str, Callable[..., Any]] = {
    "context_of": secagg.context_of,
    "generate_identity": secagg.generate_identity,
    "simulate": secagg.simulate,
    "total_of": secagg.total_of,
    "vector_of": secagg.vector_of,
}
for name, x in CLASSES.items():
    for method in vars(x):
        if not method.startswith("_") and callable(getattr(x, method)):
            CALLABLES[f"{name}.{method}"] = getattr(x, method)

every_callable = pytest.mark.parametrize("name", CALLABLES)


def test_all_is_sorted_and_has_every_public_name():
    public = {
        name
        for name, x in vars(secagg).items()
        if not name.startswith("_") and not isinstance(x, types.ModuleType)
    }

    assert list(secagg.__all__) == sorted(set(secagg.__all__))
    assert set(secagg.__all__) == public


def test_every_error_is_a_protocol_error_and_says_what_it_means():
    errors = [getattr(secagg, x) for x in secagg.__all__ if x.endswith("Error")]

    assert len(errors) == 8
    for error in errors:
        assert issubclass(error, secagg.ProtocolError)
        assert not issubclass(error, ValueError)
        assert error.__doc__


@every_callable
def test_a_docstring_begins_with_a_sentence_on_a_line(name):
    lines = doc(CALLABLES[name]).splitlines()

    assert lines and re.match(r"[A-Z].*[^.]\.$", lines[0])
    assert len(lines) == 1 or lines[1] == ""


@every_callable
def test_a_docstring_explains_exactly_the_parameters(name):
    function = CALLABLES[name]

    assert entries(function, "Args") == [x for x in parameters(function) if x != "self"]


@every_callable
def test_a_docstring_names_what_is_raised(name):
    function = CALLABLES[name]

    source = inspect.cleandoc("\n" + inspect.getsource(function))
    found = set(re.findall(r"raise (\w+)\(", source))
    assert found <= set(entries(function, "Raises"))


@pytest.mark.parametrize("name", ["Client", "Server"])
def test_a_party_explains_its_arguments_and_names_its_source(name):
    x = CLASSES[name]

    assert entries(x, "Args") == parameters(x)
    assert section(x, "Reference")


def test_fedagg_is_imported_without_cryptography_and_secagg_names_the_extra():
    program = """
import sys
sys.modules["cryptography"] = None
import fedagg
try:
    import fedagg.secagg
except ImportError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert "pip install 'fedagg[secagg]'" in run.stdout


def test_every_test_that_security_names_is_there():
    page = pathlib.Path(secagg.__file__).with_name("SECURITY.md").read_text()
    folder = pathlib.Path(__file__).parents[1]
    source = "".join(x.read_text() for x in folder.rglob("test_*.py"))

    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 15
    assert named <= set(re.findall(r"^def (test_\w+)", source, re.M))
