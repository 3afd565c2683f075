"""Gradients with convolutions and pooling rewritten against those as JAX has them."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import fedagg
from fedagg._training.gradient import value_and_grad
from tests.helpers import WAYS, first_now, mesh_of


class Kind(NamedTuple):
    """A convolution of a batch of four. `exact`: its gradient keeps XLA's bits.

    With large strides it does not: the kernel is larger than the output's gradient,
    over which it slides for the gradient of the inputs.
    """

    space: tuple[int, ...] = (9, 8)
    features: tuple[int, int] = (4, 6)
    width: int = 3
    order: str = "features last"
    dtype: Any = jnp.float32
    exact: bool = True
    options: dict[str, Any] = {}

    @property
    def numbers(self) -> tuple[str, str, str]:
        space = "DHW"[-len(self.space) :]
        if self.order == "features first":
            return (f"NC{space}", f"OI{space}", f"NC{space}")
        return (f"N{space}C", f"{space}IO", f"N{space}C")

    def arguments(self, seed: int = 0) -> tuple[jax.Array, jax.Array]:
        """A kernel and inputs."""
        draw = np.random.default_rng(seed)
        groups = self.options.get("feature_group_count", 1)
        n, (inputs, outputs) = len(self.space), self.features
        shapes = (
            (self.width,) * n + (inputs // groups, outputs),
            (4, *self.space, inputs),
        )
        if self.order == "features first":
            shapes = (outputs, inputs, *(self.width,) * n), (4, inputs, *self.space)
        kernel, batch = (jnp.asarray(draw.normal(size=x), self.dtype) for x in shapes)
        return kernel, batch

    def loss(self, both: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        options: dict[str, Any] = {
            "window_strides": (1,) * len(self.space),
            "padding": "VALID",
        }
        options |= {"dimension_numbers": self.numbers} | self.options
        result = jax.lax.conv_general_dilated(*both[::-1], **options)
        return jnp.sum(jnp.square(result.astype(jnp.float32))), None


KINDS = {
    "plain": Kind(),
    "same": Kind(options=dict(padding="SAME")),
    "one_by_one": Kind(width=1),
    "1d": Kind(space=(9,)),
    "3d": Kind(space=(8, 7, 7)),
    "features_first": Kind(order="features first"),
    "strides": Kind(exact=False, options=dict(window_strides=(2, 3))),
    "strides_same": Kind(options=dict(window_strides=(2, 2), padding="SAME")),
    "dilated": Kind(options=dict(rhs_dilation=(2, 3))),
    "transposed": Kind(
        exact=False, options=dict(lhs_dilation=(2, 2), padding=((2, 1), (1, 2)))
    ),
    "transposed_and_strides": Kind(
        exact=False,
        options=dict(
            lhs_dilation=(3, 2),
            rhs_dilation=(1, 2),
            window_strides=(2, 1),
            padding=((2, 1), (3, 2)),
        ),
    ),
    "transposed_3d": Kind(
        space=(3, 2, 4),
        exact=False,
        options=dict(lhs_dilation=(2, 1, 2), padding=((2, 2),) * 3),
    ),
    "kernel_larger_than_input": Kind(
        space=(2, 2), exact=False, options=dict(padding="SAME")
    ),
    "groups": Kind(exact=False, options=dict(feature_group_count=2)),
    "groups_1d": Kind(space=(9,), exact=False, options=dict(feature_group_count=2)),
    "depthwise": Kind(
        features=(4, 8), exact=False, options=dict(feature_group_count=4)
    ),
    "groups_of_the_batch": Kind(exact=False, options=dict(batch_group_count=2)),
    "bfloat16": Kind(dtype=jnp.bfloat16),
    "float16": Kind(dtype=jnp.float16),
    "summed_in_float32": Kind(
        dtype=jnp.bfloat16, options=dict(preferred_element_type=jnp.float32)
    ),
}

every_kind = first_now("name", KINDS)


def gradient(kind: Kind, take: Any = value_and_grad):
    return lambda both: take(kind.loss)(both)[1]


def plain(fn: Any) -> Any:
    return jax.value_and_grad(fn, has_aux=True)


def descend(gradient: Any) -> Any:
    """A few steps in a loop, as clients take them."""

    def step(both: Any, _: None):
        return jax.tree.map(lambda x, g: x - 0.01 * g, both, gradient(both)), None

    return lambda both: jax.lax.scan(step, both, None, length=2)[0]


def assert_close(a: Any, b: Any, dtype: Any = jnp.float32):
    """To the rounding of sums whose terms are of about one size."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = (np.asarray(z, np.float32) for z in (x, y))
        size = np.max(np.abs(y), initial=0.0)
        np.testing.assert_allclose(x, y, atol=size * 30 * float(jnp.finfo(dtype).eps))


def labels_of(compiled: str) -> list[str]:
    """The axes of every convolution, also of those within fusions."""
    return re.findall(r" convolution\(.*dim_labels=(\w+->\w+)", compiled)


def are_of_kernels(labels: list[str]) -> bool:
    """Whether features are last, and those of kernels in, out."""
    return all(re.fullmatch(r"b(\d+)f_\1io->b\1f", x) for x in labels)


@every_kind
def test_a_gradient_is_that_of_the_plain_convolution(name):
    kind = KINDS[name]
    both = kind.arguments()

    ours = jax.jit(gradient(kind))(both)
    theirs = jax.jit(gradient(kind, plain))(both)

    assert_close(ours, theirs, kind.dtype)
    assert [x.dtype for x in ours] == [x.dtype for x in theirs]


@pytest.mark.thorough
@pytest.mark.parametrize("name", [x for x in KINDS if KINDS[x].exact])
def test_a_gradient_keeps_the_bits_of_xla_outside_of_loops(name):
    kind = KINDS[name]
    both = kind.arguments()

    ours = jax.jit(gradient(kind))(both)
    theirs = jax.jit(gradient(kind, plain))(both)

    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@every_kind
def test_kernels_of_their_own_give_gradients_of_their_own(name):
    kind = KINDS[name]
    each = [kind.arguments(seed) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *each)

    ours = jax.jit(jax.vmap(gradient(kind)))(stacked)

    theirs = jax.jit(gradient(kind, plain))
    for i, both in enumerate(each):
        assert_close(jax.tree.map(lambda x, i=i: x[i], ours), theirs(both), kind.dtype)


@pytest.mark.thorough
@every_kind
@pytest.mark.parametrize("clients", [1, 2])
def test_loops_hold_convolutions_that_there_are_kernels_for(name, clients):
    kind = KINDS[name]
    both = kind.arguments()
    many = jax.tree.map(lambda x: jnp.stack([x] * clients), both)

    def compiled(take):
        steps = descend(gradient(kind, take))
        fn, arguments = (steps, both) if clients == 1 else (jax.vmap(steps), many)
        return jax.jit(fn).lower(arguments).compile().as_text() or ""

    ours, theirs = compiled(value_and_grad), compiled(plain)

    assert are_of_kernels(labels_of(ours))
    assert "wrapped_convolution" not in ours and "rhs_reversal" not in ours
    assert not are_of_kernels(labels_of(theirs))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), padding="VALID")(x))
        x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def make_round(sum_over=None):
    draw = np.random.default_rng(0)
    clients = [
        (draw.normal(size=(m, 8, 8, 2)).astype(np.float32), draw.integers(0, 3, m))
        for m in (5, 4, 2)
    ]
    data, sizes = fedagg.pad_clients(clients)
    model = Net()
    loss = fedagg.linen_loss(model, optax.softmax_cross_entropy_with_integer_labels)
    work = fedagg.local_training(loss, optax.sgd(0.1), batch_size=2, shuffle=False)
    training = fedagg.federated_averaging(
        work, optax.sgd(1.0), fedagg.aggregator(fedagg.mean(), sum_over=sum_over)
    )
    variables = jax.jit(model.init)(jax.random.key(0), clients[0][0])
    return training, (training.init(variables), data, sizes)


@pytest.mark.thorough
@pytest.mark.parametrize("sum_over", [None, fedagg.in_chunks(2)])
def test_a_round_holds_no_convolution_without_a_kernel(sum_over):
    training, arguments = make_round(sum_over)

    compiled = jax.jit(training.next).lower(*arguments).compile().as_text() or ""

    assert labels_of(compiled) and are_of_kernels(labels_of(compiled))
    assert "wrapped_convolution" not in compiled
    assert "select-and-scatter" not in compiled


@pytest.mark.thorough
def test_a_round_on_a_mesh_may_close_over_arrays_and_holds_kernels_all_the_same():
    mesh = mesh_of(2)
    model = Net()
    plain_loss = fedagg.linen_loss(
        model, optax.softmax_cross_entropy_with_integer_labels
    )
    _, (state, data, sizes) = make_round()
    factor = jax.device_put(jnp.float32(1.0), jax.NamedSharding(mesh, jax.P()))

    @jax.jit
    def next_round(factor, state, data, sizes):
        def loss(variables, examples, key):
            losses, changed = plain_loss(variables, examples, key)
            return factor * losses, changed

        work = fedagg.local_training(loss, optax.sgd(0.1), batch_size=2, shuffle=False)
        mean = fedagg.aggregator(fedagg.mean(), sum_over=fedagg.across(mesh))
        training = fedagg.federated_averaging(work, optax.sgd(1.0), mean)
        return training.next(state, data, sizes)

    compiled = next_round.lower(factor, state, data, sizes).compile().as_text() or ""

    assert labels_of(compiled) and are_of_kernels(labels_of(compiled))
    assert "wrapped_convolution" not in compiled


@pytest.mark.parametrize("way", ["default", "chunks_with_a_rest", "chunks_across"])
@pytest.mark.deep
def test_a_round_is_that_of_plain_gradients_in_every_way_to_sum(way, monkeypatch):
    training, arguments = make_round(WAYS[way]())
    ours = jax.jit(training.next)(*arguments).value
    monkeypatch.setattr("fedagg._training.local_training.value_and_grad", plain)

    training, arguments = make_round()
    theirs = jax.jit(training.next)(*arguments).value

    assert_close(ours, theirs)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", ["plain", "transposed", "groups"])
def test_elsewhere_the_program_stays_as_it_is(platform, name):
    kind = KINDS[name]

    def operations(take):
        traced = jax.jit(descend(gradient(kind, take))).trace(kind.arguments())
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return sorted(
            re.sub(r"%\S+", "%", x).strip()
            for x in text.splitlines()
            if re.search(r"stablehlo\.(convolution|transpose|reverse)", x)
        )

    assert operations(value_and_grad) == operations(plain)


def test_a_function_without_convolutions_is_traced_once_and_stays_as_it_is():
    traced = []

    def loss(x):
        traced.append(x)
        return jnp.sum(jnp.tanh(x) @ x), None

    x = jnp.ones((3, 3))
    ours = jax.make_jaxpr(value_and_grad(loss))(x)

    assert len(traced) == 1
    assert str(ours) == str(jax.make_jaxpr(plain(loss))(x))


@jax.custom_vjp
def with_own_gradient(kernel, batch):
    return jax.lax.conv(batch, kernel, (1, 1), "VALID")


def convolved(kernel, batch):
    return jnp.sin(jax.lax.conv(batch, kernel, (1, 1), "SAME"))


with_own_gradient.defvjp(
    lambda kernel, batch: (with_own_gradient(kernel, batch), (kernel, batch)),
    lambda saved, g: jax.vjp(
        lambda *x: jax.lax.conv(x[1], x[0], (1, 1), "VALID"), *saved
    )[1](g),
)


def scanned(kernel, batch):
    return jax.lax.scan(lambda x, _: (convolved(kernel, x), None), batch, None, 2)[0]


def branched(kernel, batch):
    return jax.lax.cond(jnp.sum(batch) > 0.0, convolved, lambda k, x: x, kernel, batch)


def looped(kernel, batch):
    """Of a loop without a derivative."""
    fixed = jax.lax.stop_gradient((kernel, batch))
    end = jax.lax.while_loop(
        lambda x: jnp.max(x) < 0.0, lambda x: convolved(fixed[0], x), fixed[1]
    )
    return convolved(kernel, batch) + end


@first_now(
    "fn",
    [
        *(jax.jit(convolved), jax.checkpoint(convolved), with_own_gradient),
        *(scanned, branched, looped, jax.custom_jvp(convolved)),
    ],
    ids="jit checkpoint custom_vjp scan cond while custom_jvp".split(),
)
def test_convolutions_within_other_functions_are_rewritten(fn):
    if isinstance(fn, jax.custom_jvp):
        fn.defjvps(lambda t, out, k, x: jnp.sum(t) * out, None)
    kernel, batch = Kind(features=(4, 4), order="features first").arguments()

    def loss(both):
        return jnp.sum(fn(*both)), None

    def labels(take):
        lowered = jax.jit(lambda x: take(loss)(x)[1]).lower((kernel, batch)).as_text()
        return set(re.findall(r"dim_numbers = (\[[^]]*\])x", lowered))

    ours = jax.jit(lambda x: value_and_grad(loss)(x)[1])((kernel, batch))
    theirs = jax.jit(lambda x: plain(loss)(x)[1])((kernel, batch))

    assert_close(ours, theirs)
    assert labels(value_and_grad) == {"[b, 0, 1, f]"} and "[b, f, 0, 1]" in labels(
        plain
    )


def test_integers_are_left_alone():
    kernel, batch = (x.astype(jnp.int32) for x in KINDS["features_first"].arguments())

    def loss(scale):
        result = jax.lax.conv(batch, kernel, (1, 1), "VALID")
        return scale * jnp.sum(result).astype(jnp.float32), result

    ours, theirs = (jax.make_jaxpr(take(loss))(1.0) for take in (value_and_grad, plain))

    assert str(ours) == str(theirs)


def test_what_is_rewritten_has_derivatives():
    both = KINDS["strides"].arguments()

    def size(take):
        return jax.jit(
            jax.grad(
                lambda x: sum(
                    jnp.sum(jnp.square(y))
                    for y in jax.tree.leaves(gradient(KINDS["strides"], take)(x))
                )
            )
        )(both)

    assert_close(size(value_and_grad), size(plain))


POOLS = {
    "plain": ((2, 8, 6, 3), (2, 2), (2, 2), "VALID"),
    "with_a_rest": ((2, 9, 7, 3), (2, 3), (2, 3), "VALID"),
    "same": ((2, 9, 7, 3), (2, 2), (2, 2), "SAME"),
    "padded": ((2, 8, 8, 3), (2, 2), (2, 2), ((1, 1), (1, 1))),
    "1d": ((2, 10, 3), (4,), (4,), "SAME"),
    "3d": ((1, 4, 4, 6, 2), (2, 2, 2), (2, 2, 2), "VALID"),
    "overlapping": ((2, 8, 8, 3), (3, 3), (2, 2), "SAME"),
}


@first_now("dtype", [jnp.float32, jnp.bfloat16])
@first_now("name", POOLS)
def test_max_pooling_has_the_same_gradient_with_ties_nan_and_infinities(name, dtype):
    shape, *pool = POOLS[name]
    draw = np.random.default_rng(0)
    batch = draw.integers(-2, 3, shape).astype(np.float32)
    for held in (np.nan, -np.inf, np.inf):
        batch[draw.random(shape) < 0.1] = held
    batch = jnp.asarray(batch, dtype)

    def pulled_back(take):
        def loss(x):
            pooled = nn.max_pool(x, *pool)
            weights = 1.0 + jnp.arange(pooled.size, dtype=jnp.float32)
            finite = jnp.nan_to_num(pooled.astype(jnp.float32), posinf=0.0, neginf=0.0)
            weighted = jnp.sum(weights * finite.ravel())
            kept = jnp.sum(weights * pooled.astype(jnp.float32).ravel())
            return weighted + kept, None

        return jax.jit(lambda x: take(loss)(x)[1])(batch)

    np.testing.assert_array_equal(pulled_back(value_and_grad), pulled_back(plain))


def test_max_pooling_without_overlap_needs_no_loop_over_windows():
    def loss(x):
        return jnp.sum(nn.max_pool(x, (2, 2), (2, 2))), None

    lowered = jax.jit(value_and_grad(loss)).lower(jnp.ones((1, 4, 4, 1))).as_text()

    assert "select_and_scatter" not in lowered
