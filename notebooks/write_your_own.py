# %% [markdown]
# # How do I write a stage, a compressor and a rule of my own?
#
# Each is a function of about twenty lines, and runs in every way to sum, in `jit` and
# over many devices, beside all that fedagg has. We write one of each, try it on a few
# numbers, and then in a training that goes wrong without it.

# %%
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from tqdm import tqdm

import fedagg

# %% [markdown]
# ## A stage: nobody weighs too much
#
# A mean is weighted by how many examples a client says it has, and nobody checks. This
# stage caps weights at a multiple of what the mean weight was in the round before. A
# stage is what each client computes, a *note* that is summed beside the values, and
# what the server makes of the sum; its `state` is all that the next round needs, and
# `broadcast` all that clients learn of it.


# %%
class CapNote(NamedTuple):
    weight: jax.Array  # [] after the cap
    present: jax.Array  # [] one
    capped: jax.Array  # [] one if it was


def capped_weights(factor: float, start: float) -> fedagg.Stage:
    """Caps weights at `factor` times the mean weight of the last round."""

    def client(shared, update, key):
        weight, one = jnp.minimum(update.weight, shared), jnp.float32(1)
        capped = (update.weight > shared).astype(jnp.float32)
        return update._replace(weight=weight), CapNote(weight, one, capped)

    def server(state, total, note, key):
        # With nobody there, the cap stays, and nothing is divided by zero.
        mean = note.weight / jnp.where(note.present > 0, note.present, 1)
        cap = jnp.where(note.present > 0, factor * mean, state)
        return fedagg.Output(cap, total, {"cap": state, "capped": note.capped})

    return fedagg.Stage(
        init=lambda template: jnp.float32(start),
        broadcast=lambda state: state,
        client=client,
        server=server,
        traits=fedagg.Traits("capped_weights"),
    )


# %% [markdown]
# Three clients, the last of which says that it has a million examples. The cap of the
# second round is three times the mean of 20, 40 and 100.

# %%
capped = fedagg.aggregator(capped_weights(3.0, start=100.0), fedagg.mean())
values, weights = jnp.array([[1.0], [2.0], [9.0]]), jnp.array([20.0, 40.0, 1e6])
state = capped.init(values[0])
for number in (1, 2):
    state, value, metrics = capped.next(state, values, weights)
    print(f"round {number}: cap {metrics['cap']:.0f}, mean {value[0]:.2f}")

# %% [markdown]
# ## A compressor: powers of two
#
# Each entry is rounded at random to one of the two powers of two around it, so that the
# mean over draws is right, and travels as one byte for sign and exponent (Horváth et
# al., "Natural Compression for Distributed Deep Learning", 2022). A compressor is a
# stage that makes a `Payload` of each array: its arrays are what is sent, and `decode`
# is what the server does before it adds.


# %%
@flax.struct.dataclass
class PowersOfTwo(fedagg.Payload):
    codes: jax.Array  # int8: 64 and the exponent, with the sign of the entry

    def decode(self) -> jax.Array:
        exponent = jnp.abs(self.codes).astype(jnp.int32) - 64
        return jnp.sign(self.codes) * jnp.ldexp(jnp.float32(1), exponent)


def powers_of_two() -> fedagg.Stage:
    """Sends a byte an entry, without bias, from 2**-63 to 2**63."""

    def encode(x, key):
        part, exponent = jnp.frexp(jnp.abs(x.astype(jnp.float32)))  # part in [1/2, 1)
        up = jax.random.bernoulli(key, 2 * part - 1)
        codes = jnp.clip(jnp.where(up, exponent, exponent - 1) + 64, 0, 127)
        signs = jnp.sign(x).astype(jnp.int8)
        return PowersOfTwo(signs * codes.astype(jnp.int8))

    def client(update, key):
        leaves, structure = jax.tree.flatten(update.value)
        keys = jax.random.split(key, len(leaves))
        sent = [encode(x, k) for x, k in zip(leaves, keys, strict=True)]
        return update._replace(value=jax.tree.unflatten(structure, sent)), ()

    traits = fedagg.Traits("powers_of_two", codes=True)
    return fedagg.Stage.stateless(client, traits=traits)


# %% [markdown]
# What is sent can be looked at: `message_bits` and `server_view` know nothing of this
# stage, and need not. Of many clients with the same value the mean is that value.

# %%
chain = fedagg.chain(fedagg.mean(weighted=False), powers_of_two())
print(fedagg.message_bits(chain, jnp.zeros(1000)), "bits for 1000 entries")
print(fedagg.server_view(chain, jnp.zeros(1000)))
compressing = fedagg.aggregator(chain)
rows = jnp.tile(jnp.array([-0.3, 0.0, 0.5, 3.0]), (10_000, 1))
output = compressing.next(compressing.init(rows[0]), rows, key=jax.random.key(0))
print("mean of many:", *(f"{x:.2f}" for x in output.value))

# %% [markdown]
# ## A rule: the majority
#
# A rule sees all clients at once, after the stages. Here each entry takes a step in the
# direction that most clients name, however large what they send is (Bernstein et al.,
# "signSGD with Majority Vote", 2019). A client whose weight is zero is absent, and may
# hold anything.


# %%
def majority(step: float) -> fedagg.Rule:
    """Moves each entry by `step` the way that most clients point; ties stay."""

    def combine(state, updates, key):
        present = updates.weight > 0

        def vote(x):
            named = present.reshape(-1, *[1] * (x.ndim - 1)) & ~jnp.isnan(x)
            votes = jnp.sum(jnp.where(named, jnp.sign(x), 0), axis=0)
            return (step * jnp.sign(votes)).astype(x.dtype)

        count = jnp.sum(present.astype(jnp.float32))
        return fedagg.Output(
            state, jax.tree.map(vote, updates.value), {"voters": count}
        )

    return fedagg.Rule(lambda template: (), combine)


voting = fedagg.combining(majority(0.1))
values = jnp.array([[1.0, 2.0], [3.0, -1.0], [-1e9, -5.0], [jnp.nan, 7.0]])
output = voting.next(voting.init(values[0]), values, jnp.array([1.0, 1.0, 1.0, 0.0]))
print(output.value, "of", output.metrics["voters"], "voters")

# %% [markdown]
# ## In training
#
# Twenty clients train a linear model on digits. One of them has wrong labels and says
# that it has a million examples; or eight send their change reversed and tenfold.

# %%
pixels, labels = (np.asarray(x) for x in load_digits(return_X_y=True))
images = (pixels / 16).astype(np.float32)
test = slice(1500, None)
clients = [(images[i:1500:20], labels[i:1500:20]) for i in range(20)]
table = fedagg.ClientTable.of(clients)
wrong = (images[:1500:20], (labels[:1500:20] + 1) % 10)
mislabelled = fedagg.ClientTable.of([wrong, *clients[1:]])
model = nnx.Linear(64, 10, rngs=nnx.Rngs(0))
start, loss = fedagg.nnx_loss(model, optax.softmax_cross_entropy_with_integer_labels)
work = fedagg.local_training(loss, optax.sgd(0.2), batch_size=16)


def scaled(variables, row, key):
    data, factor = row
    change, metrics = work(variables, data, key)
    return jax.tree.map(lambda x: factor * x, change), metrics


def train(aggregator, table=table, weights=table.sizes, factors=None):
    training = fedagg.federated_averaging(scaled, optax.sgd(1.0), aggregator)
    state, next_round, accuracy = training.init(start), jax.jit(training.next), []
    factors = np.ones(20) if factors is None else factors
    rows = table[np.arange(20)], factors.astype(np.float32)
    for key in jax.random.split(jax.random.key(1), 30):
        state, variables, _ = next_round(state, rows, weights, key)
        nnx.update(model, variables["params"], variables["state"])
        guesses = model(jnp.asarray(images[test])).argmax(axis=-1)
        accuracy.append(float(np.mean(guesses == labels[test])))
    return accuracy


claimed, turned = table.sizes.copy(), np.ones(20)
claimed[0], turned[:8] = 1e6, -10.0
mean = fedagg.aggregator(fedagg.mean())
capped = fedagg.aggregator(capped_weights(3.0, start=100.0), fedagg.mean())
cases = {
    "a million claimed": [
        ("mean", mean, {"table": mislabelled, "weights": claimed}),
        ("capped_weights", capped, {"table": mislabelled, "weights": claimed}),
    ],
    "a byte an entry": [("mean", mean, {}), ("powers_of_two", compressing, {})],
    "eight of twenty reversed": [
        ("mean", mean, {"factors": turned}),
        ("majority", fedagg.combining(majority(0.02)), {"factors": turned}),
    ],
}
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), dpi=80, layout="tight", sharey=True)
for axis, (case, ways) in zip(axes, tqdm(cases.items(), unit="case"), strict=True):
    for title, aggregator, given in ways:
        accuracy = train(aggregator, **given)
        print(f"{case:<24}  {title:<14}  accuracy {accuracy[-1]:.2f}")
        axis.plot(range(1, 31), accuracy, label=title)
    axis.set(title=case, xlabel="round", ylim=(0, 1))
    axis.legend(loc="lower right")
axes[0].set_ylabel("accuracy on held-out digits")
plt.show()

# %% [markdown]
# ## What was learnt
#
# - A stage is `client`, `server`, and what goes between them. Weights are claims: one
#   client that says a million brings a mean to 0.02, and 0.85 are right with a cap that
#   the clients themselves set.
# - A compressor is a `Payload` and a stage that makes it. A byte an entry, without
#   bias, costs nothing here: 0.86 with and without.
# - A rule sees everybody at once. A vote bears eight of twenty who send the reverse,
#   0.86; their mean stands at 0.10.
# - What every part owes, with absent clients, NaN, dtypes and keys, is a table in
#   `docs/design.md`, and `tests/test_laws.py` tries it on every part.
