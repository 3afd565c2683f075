"""A value as one vector and back, and the template within a state."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from fedagg._trees.template import Template, cut
from tests.helpers import assert_same

TREE = {
    "b": jnp.float32(7.0),
    "layers": [jnp.zeros((0, 3)), (jnp.arange(6.0).reshape(2, 3), jnp.ones((1,)))],
}
FLAT = np.array([7.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 1.0], np.float32)


def test_ravel_puts_leaf_after_leaf_in_float32():
    template = Template.of(TREE)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), TREE)

    assert template.size == 8
    assert_same(template.ravel(TREE), jnp.asarray(FLAT))
    assert_same(template.ravel(half), jnp.asarray(FLAT))


def test_unravel_is_the_inverse():
    template = Template.of(TREE)

    assert_same(template.unravel(template.ravel(TREE)), TREE)
    assert_same(jax.jit(template.unravel)(jnp.asarray(FLAT)), TREE)


@pytest.mark.parametrize(
    "tree", [{}, jnp.zeros((0,)), {"a": jnp.zeros((3, 0)), "b": ()}]
)
def test_a_value_without_entries_is_an_empty_vector(tree):
    template = Template.of(tree)

    assert template.size == 0
    assert_same(template.ravel(tree), jnp.zeros((0,)))
    assert_same(template.unravel(template.ravel(tree)), tree)


def test_one_array_is_a_tree_too():
    template = Template.of(jnp.ones((2, 2)))

    assert_same(template.ravel(jnp.ones((2, 2))), jnp.ones(4))
    assert_same(template.unravel(jnp.ones(4)), jnp.ones((2, 2)))


def test_equal_by_content_and_without_leaves():
    shapes = jax.eval_shape(lambda: TREE)
    other = {"b": TREE["b"]}

    assert Template.of(TREE) == Template.of(shapes)
    assert hash(Template.of(TREE)) == hash(Template.of(shapes))
    assert Template.of(TREE) != Template.of(other)
    assert jax.tree.leaves(Template.of(TREE)) == []


@pytest.mark.parametrize(
    "value, message",
    [
        (
            {"w": jnp.ones((2, 3)), "x": jnp.ones(1)},
            r"\['w'\] of shape \[3, 2\], .*; got \['w'\] of shape \[2, 3\]",
        ),
        ({"w": jnp.ones((3, 2))}, r"\['x'\] of shape \[1\], .*; got no further leaf"),
        (
            {"w": jnp.ones((3, 2)), "x": jnp.ones(1), "y": jnp.ones(1)},
            r"no further leaf, .*; got \['y'\] of shape \[1\]",
        ),
        (
            {"v": jnp.ones((3, 2)), "x": jnp.ones(1)},
            r"\['w'\] of shape \[3, 2\], .*; got \['v'\] of shape \[3, 2\]",
        ),
        (jnp.ones((3, 2)), r"\['w'\] of shape .*; got the only leaf of shape"),
    ],
)
def test_another_structure_or_shape_names_the_first_path_that_differs(value, message):
    template = Template.of({"w": jnp.ones((3, 2)), "x": jnp.ones(1)})

    with pytest.raises(ValueError, match=f"^rotation: expected {message}"):
        template.ravel(value, "rotation")


def test_other_containers_of_the_same_paths_are_an_error():
    template = Template.of([jnp.ones(2)])

    with pytest.raises(ValueError, match=r"updates: expected .*\[\*\].*\(\*,\)"):
        template.ravel((jnp.ones(2),))


def test_an_integer_leaf_is_named():
    value = {"k": jnp.arange(3), "w": jnp.ones(2)}

    with pytest.raises(TypeError, match=r"updates takes .*; \['k'\] has dtype int32"):
        Template.of(value).ravel(value)


def test_a_state_with_a_template_is_saved_and_restored(tmp_path):
    saved = {"template": Template.of(TREE), "round": jnp.int32(3)}
    fresh = {"template": Template.of(TREE), "round": jnp.int32(0)}

    from_flax = flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(saved))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", saved)
        checkpointer.wait_until_finished()
        from_orbax = checkpointer.restore(tmp_path / "state", fresh)

    assert_same(jax.tree.map(jnp.asarray, from_flax), saved)
    assert_same(from_orbax, saved)


def test_a_template_goes_through_jit_scan_vmap_and_donation():
    state = {"template": Template.of(TREE), "round": jnp.zeros((2,), jnp.int32)}

    def step(state, x):
        total = state["template"].unravel(jnp.full((8,), x))
        return {**state, "round": state["round"] + 1}, total

    jitted, _ = jax.jit(step, donate_argnums=0)(jax.tree.map(jnp.copy, state), 1.0)
    scanned, totals = jax.lax.scan(step, state, jnp.arange(3.0))
    mapped, _ = jax.vmap(step, in_axes=(0, None))(state, 1.0)

    assert_same(jitted, {**state, "round": jnp.ones((2,), jnp.int32)})
    assert_same(scanned, {**state, "round": jnp.full((2,), 3)})
    assert_same(mapped, jitted)
    assert jax.tree.map(jnp.shape, totals) == jax.tree.map(
        lambda x: (3, *x.shape), TREE
    )


@pytest.mark.deep
def test_ravel_and_unravel_are_linear_for_grad_and_vmap():
    template = Template.of(TREE)
    weights = jnp.arange(8.0)

    gradient = jax.grad(lambda tree: template.ravel(tree) @ weights)(TREE)
    back = jax.grad(lambda x: template.unravel(x)["layers"][1][0][1, 2])(weights)
    stacked = jax.vmap(template.unravel)(jnp.stack([weights, 2.0 * weights]))

    assert_same(template.ravel(gradient), weights)
    assert_same(back, jnp.zeros(8).at[6].set(1.0))
    assert_same(stacked["b"], jnp.zeros(2))
    assert_same(stacked["layers"][1][1], jnp.array([[7.0], [14.0]]))


def test_cut_gives_the_parts_in_order():
    parts = cut(jnp.arange(6.0), [1, 0, 3, 2])

    assert_same(
        parts, [jnp.arange(6.0)[a:b] for a, b in [(0, 1), (1, 1), (1, 4), (4, 6)]]
    )
