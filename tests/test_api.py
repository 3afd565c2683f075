"""The public names, their docstrings, and how the modules hang together."""

import ast
import functools
import inspect
import pathlib
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fedagg
import fedagg.secagg

PACKAGE = pathlib.Path(fedagg.__file__).parent

# What a module is part of, in the order in which they may import: from their own part
# and from those before it. A new folder goes where it belongs.
PARTS = [
    *("_version", "_files"),
    *("_mechanism", "_types", "_aggregator", "_payload", "_sentence"),
    *("_trees", "_messages", "_execution", "_noise", "_bounding", "_rounds", "_rules"),
    "_deployment",
    *("_privacy", "_compression", "_secure", "_client_noise", "_training", "_recipes"),
    *("_logs", "_train", "_folders", "__init__"),
    *("attacks", "metrics", "secagg", "algorithms", "flower"),
]

# What these make has a source in the literature; the core has none.
CORE = {
    *("_rounds.aggregator", "_rounds.chain", "_rounds.combining", "_rounds.view"),
    *(
        "_execution.across",
        "_execution.cores",
        "_execution.ways",
        "_training.data",
        "_training.memories",
        "_training.population",
        "_training.server_step",
        "_training.prefetching",
        "_training.local_training",
        "_training.losses",
    ),
    "_training.federated_averaging",
    "_training.partition",
    "_training.trained_part",
    "_logs",
    "_train",
}


# Folders with public names of their own.
OPENED_BY_NAMES = {
    f"{x}.__init__" for x in ("algorithms", "attacks", "flower", "metrics", "secagg")
}


def module_name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
FUNCTIONS = {
    name: getattr(fedagg, name)
    for name in fedagg.__all__
    if inspect.isfunction(getattr(fedagg, name))
}

every_module = pytest.mark.parametrize("module", MODULES)
every_function = pytest.mark.parametrize("name", FUNCTIONS)


@functools.cache
def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def part_of(module: str) -> int:
    part = module.split(".")[0]
    if part not in PARTS:
        pytest.fail(f"fedagg.{module} is in no part: add {part} to PARTS, {__file__}.")
    return PARTS.index(part)


def reached_from(module: str) -> set[str]:
    """All modules that a module imports, and what those import."""
    reached, left = set(), [module]
    while left:
        new = set(imports_of(left.pop())) - reached
        reached |= new
        left += new
    return reached


def imports_of(module: str) -> Iterator[str]:
    """The modules of ours that a module imports, by their names within fedagg."""
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names] + [base]
        else:
            continue
        for name in names:
            inner = name.removeprefix("fedagg.")
            if inner != name and inner in MODULES:
                yield inner
            if name == "fedagg" and isinstance(node, ast.Import):
                yield "__init__"


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute or a name, empty for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def names_used(module: str) -> set[str]:
    """Every dotted name in a module, and every name imported from another."""
    used = set()
    for node in ast.walk(parsed(module)):
        used.add(dotted(node))
        if isinstance(node, ast.ImportFrom):
            used |= {f"{node.module}.{alias.name}" for alias in node.names}
    return used


def doc(function: Callable[..., Any]) -> str:
    return inspect.cleandoc(function.__doc__ or "")


def section(function: Callable[..., Any], heading: str) -> str:
    """What a docstring has under `heading`, with the indentation taken off."""
    found = re.search(rf"^{heading}:(.*?)(?=^\S|\Z)", doc(function), re.M | re.S)
    return inspect.cleandoc(found[1]) if found else ""


def entries(function: Callable[..., Any], heading: str) -> list[str]:
    """The names that a section of a docstring explains."""
    return re.findall(r"^(\*{0,2}\w+):", section(function, heading), re.M)


def parameters(function: Callable[..., Any]) -> list[str]:
    stars: dict[Any, str] = {
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    return [
        stars.get(p.kind, "") + p.name
        for p in inspect.signature(function).parameters.values()
    ]


def raised(function: Callable[..., Any]) -> set[str]:
    """The names of the exceptions raised in a function's own text."""
    tree = ast.parse(inspect.getsource(function))
    return {
        dotted(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and node.exc is not None
    }


def test_all_is_sorted_and_has_every_public_name():
    public = {
        name
        for name, x in vars(fedagg).items()
        if not name.startswith("_") and not isinstance(x, types.ModuleType)
    }

    assert list(fedagg.__all__) == sorted(set(fedagg.__all__))
    assert set(fedagg.__all__) == public


def test_the_package_is_re_exports_only():
    kinds = [type(node).__name__ for node in parsed("__init__").body]

    assert kinds[0] == "Expr" and kinds[-1] == "Assign"
    assert set(kinds[1:-1]) == {"ImportFrom"}


@every_module
def test_a_module_imports_from_its_own_part_and_those_before(module):
    for imported in imports_of(module):
        assert part_of(imported) <= part_of(module), f"{module} imports {imported}"


@every_module
def test_no_imports_go_in_a_circle(module):
    assert module not in reached_from(module) - {"secagg.__init__"}


@pytest.mark.parametrize("module", [x for x in MODULES if x.endswith(".__init__")])
def test_a_folder_is_opened_by_prose(module):
    if module not in OPENED_BY_NAMES:
        assert [type(x).__name__ for x in parsed(module).body] == ["Expr"]


@every_module
def test_every_module_has_a_part_a_docstring_and_at_most_250_lines(module):
    text = MODULES[module].read_text()

    part_of(module)
    assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"
    assert len(text.splitlines()) <= 250


# Programs that run rounds, and so compile them.
DRIVERS = {"_train", "flower._mod", "flower._strategy"}


@pytest.mark.parametrize("module", [x for x in MODULES if x not in DRIVERS])
def test_nothing_is_compiled_for_the_user(module):
    compiled = {x for x in names_used(module) if re.search(r"\bp?jit$|\.pmap$", x)}

    assert compiled == set()


@pytest.mark.parametrize("module", [x for x in MODULES if x != "_trees.pytree"])
def test_leaves_are_looped_over_in_one_module_only(module):
    loop = r"jax.*\.(tree_)?(un)?(flatten|leaves)(_with_(path|keys))?(_up_to)?$"

    assert {x for x in names_used(module) if re.match(loop, x)} == set()


@every_module
def test_nothing_is_asserted_or_printed(module):
    nodes = list(ast.walk(parsed(module)))

    assert not any(isinstance(x, ast.Assert) for x in nodes)
    assert not any(dotted(x) == "print" for x in nodes)
    assert not any(isinstance(x, ast.ExceptHandler) and not x.type for x in nodes)


@every_function
def test_a_docstring_begins_with_a_sentence_on_a_line(name):
    lines = doc(FUNCTIONS[name]).splitlines()

    assert lines and re.match(r"[A-Z].*[^.]\.$", lines[0])
    assert len(lines) == 1 or lines[1] == ""


@every_function
def test_a_docstring_explains_exactly_the_parameters(name):
    function = FUNCTIONS[name]

    assert entries(function, "Args") == parameters(function)


@every_function
def test_a_docstring_names_what_is_raised(name):
    function = FUNCTIONS[name]

    assert raised(function) <= set(entries(function, "Raises"))


@every_function
def test_a_technique_names_its_source(name):
    function = FUNCTIONS[name]

    if function.__module__.removeprefix("fedagg.") not in CORE:
        assert section(function, "Reference")


@every_function
def test_every_parameter_of_a_public_function_is_annotated(name):
    function = FUNCTIONS[name]

    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name


def test_a_docstring_is_read_as_the_tests_above_take_it():
    def example(a: int, *rest: int, b: int = 0) -> None:
        """Does a thing.

        Reports `x`: nothing.

        Args:
            a: the first,
                in two lines: yes.
            *rest: more.
            b: last.

        Raises:
            ValueError: never.
        """
        raise TypeError

    assert entries(example, "Args") == parameters(example) == ["a", "*rest", "b"]
    assert entries(example, "Raises") == ["ValueError"]
    assert section(example, "Reference") == ""
