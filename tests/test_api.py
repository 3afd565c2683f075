"""The public names, their docstrings, and how the modules hang together."""

import ast
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

# A module imports from layers further up only. A new module goes into its layer here.
LAYERS = [
    {
        *("_types", "_accounting", "_elias_gamma"),
        *("_hadamard", "_measures", "_packing"),
    },
    {"_integer_laws", "_integer_noise"},
    {"_tree"},
    {"_checks", "_keys", "_loops", "_random", "_reductions", "_residues"},
    {"_conditional_rounding", "_normal", "_notation"},
    {"_noise_tree"},
    {"_template"},
    {"_rows"},
    {"_folding"},
    {"_bounds", "_chain", "_execution", "_message"},
    {"_aggregator", "_private"},
    {"_grid", "_secure_values", "_view"},
    {
        *("_bounding", "_mean", "_median"),
        *("_cost", "_discretization", "_quantization", "_rotation"),
        *("_modular_clipping", "_secure_sum", "_sign", "_sparsification"),
        *("_gaussian", "_local_noise", "_matrix_factorization", "_tree_noise"),
    },
    {"_distributed_noise", "_eden", "_feedback"},
    {"_discrete_gaussian", "_skellam"},
    {"_recipes"},
    {"_training"},
    {"_local_training"},
    {"__init__"},
    {"secagg._degree", "secagg._errors", "secagg._graph", "secagg._shamir"},
    {"secagg._crypto", "secagg._plan"},
    {"secagg._identity", "secagg._masking"},
    {"secagg._envelopes", "secagg._messages", "secagg._statements"},
    {"secagg._recovery"},
    {"secagg._client", "secagg._server"},
    {"secagg._simulation"},
    {"secagg.__init__"},
]
LAYER_OF = {module: i for i, layer in enumerate(LAYERS) for module in layer}

# What these make has a source in the literature; the core has none.
CORE = {
    *("_aggregator", "_chain", "_execution", "_message"),
    *("_local_training", "_training", "_view"),
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


def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def layer_of(module: str) -> int:
    if module not in LAYER_OF:
        pytest.fail(f"fedagg.{module} is in no layer: add it to LAYERS in {__file__}.")
    return LAYER_OF[module]


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
def test_a_module_imports_from_layers_before_its_own(module):
    for imported in imports_of(module):
        assert layer_of(imported) < layer_of(module), f"{module} imports {imported}"


@every_module
def test_every_module_has_a_layer_a_docstring_and_at_most_250_lines(module):
    text = MODULES[module].read_text()

    layer_of(module)
    assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"
    assert len(text.splitlines()) <= 250


@every_module
def test_nothing_is_compiled_for_the_user(module):
    compiled = {x for x in names_used(module) if re.search(r"\bp?jit$|\.pmap$", x)}

    # There it gives a function a name that is seen in what is traced.
    assert compiled == ({"jax.jit"} if module == "_measures" else set())


@pytest.mark.parametrize("module", [x for x in MODULES if x != "_tree"])
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
