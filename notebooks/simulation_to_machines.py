# %% [markdown]
# # How does a simulated round run on many machines?
#
# In a simulation all clients are rows of one program. On machines of their own they get
# bytes and send bytes, some are never heard of again, and the server may not be allowed
# to see what one of them sends. The functions stay the same: a round has `steps`, and
# `next` is one way to drive them. We drive them by hand, message by message, first in
# the clear and then under secure aggregation.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

import fedagg
from fedagg import secagg

CLIENTS = 10
pixels, labels = (np.asarray(x) for x in load_digits(return_X_y=True))
images = (pixels / 16).astype(np.float32)
data, _ = fedagg.pad_clients([(images[i::10], labels[i::10]) for i in range(CLIENTS)])
model = nnx.Linear(64, 10, rngs=nnx.Rngs(0))  # small enough to look at
start, loss = fedagg.nnx_loss(model, optax.softmax_cross_entropy_with_integer_labels)
work = fedagg.local_training(loss, optax.sgd(0.2), batch_size=16)
keys = [jax.random.fold_in(jax.random.key(1), i) for i in range(CLIENTS)]


def row_of(client):
    return jax.tree.map(lambda x: x[client], data)


# %% [markdown]
# ## In one program
#
# Clients 3 and 7 drop out: their weight is zero.

# %%
stages = fedagg.chain(fedagg.clipping(2.0), fedagg.mean(weighted=False))
training = fedagg.federated_averaging(work, optax.sgd(1.0), fedagg.aggregator(stages))
present = np.ones(CLIENTS, np.float32)
present[[3, 7]] = 0.0
simulated = jax.jit(training.next)(
    training.init(start), data, present, jax.random.key(1)
)

# %% [markdown]
# ## The same round in messages
#
# | | where | |
# | --- | --- | --- |
# | `broadcast(state)` | server | all that clients are told: the model, bounds |
# | `client(shared, row, weight, key)` | client | trains; its message |
# | `add(total, message)` | server | decodes a message and adds it |
# | `server(state, total)` | server | the next state and model, metrics |
#
# Both sides make the same `Wire`, so that bytes are those of the arrays and a header
# that says what they are of. The server holds one running total, whatever the number of
# clients. In a deployment each client has a key that nobody else knows; to compare, we
# give those of the simulation.

# %%
steps, state = training.steps, training.init(start)
wire = fedagg.Wire(training, start, metrics=["training/loss"])
told, sent = wire.encode_shared(steps.broadcast(state), 1), b""
total = fedagg.RunningTotal(wire, 1)
train_at_home = jax.jit(steps.client)
for client in np.flatnonzero(present):
    shared = wire.decode_shared(told, 1)
    sent = wire.encode(train_at_home(shared, row_of(client), 1.0, keys[client]), 1)
    total.add(int(client), sent)
deployed = steps.server(state, total.total)


def apart(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in pairs if x.size)


print(f"a client is told {len(told):,} bytes and sends {len(sent):,}")
print(f"the models differ by at most {apart(simulated.value, deployed.value):.0e}")

# %% [markdown]
# ## The same round, with messages that the server cannot read
#
# `secure_sum` around the stages makes what they send integers that wrap around when
# added. What the work of a client reports, its loss, is beside them and in the clear,
# as `server_view` would list, so that this work reports nothing.


# %%
def silent_work(variables, row, key):
    return work(variables, row, key)[0], {}


hidden = fedagg.secure_sum(stages, 0.5, largest_cohort=CLIENTS)
secure = fedagg.aggregator(hidden)
training = fedagg.federated_averaging(silent_work, optax.sgd(1.0), secure)
print(fedagg.server_view(training, start, row=row_of(0)))
simulated = jax.jit(training.next)(
    training.init(start), data, present, jax.random.key(1)
)

steps, state = training.steps, training.init(start)
shared = steps.broadcast(state)
train_at_home = jax.jit(steps.client)
messages = [train_at_home(shared, row_of(i), 1.0, keys[i]) for i in range(CLIENTS)]
vectors = [secagg.vector_of(message) for message in messages]

# %% [markdown]
# A client and a server of the protocol are state machines, bytes in and bytes out. They
# agree on keys, share what could unmask a client who drops out, and send vectors under
# masks that cancel in the sum. Client 3 drops out before its vector, client 7 before
# its shares. The plan has the length and the bits of the secure sum, and so have the
# demands of each client, who was told the same as all others.

# %%
cohort = [
    b"client %d" % i for i in range(CLIENTS)
]  # public keys, where they are signed
told = fedagg.Wire(training, start).encode_shared(shared, 1)
context = secagg.context_of(cohort, told)
plan = secagg.Plan.for_aggregator(
    training, start, CLIENTS, context, complete=True, smallest_cohort=8
)
demands = secagg.Demands.for_aggregator(training, start, context, smallest_cohort=8)
parties = [secagg.Client(plan, i, vectors[i], demands) for i in range(CLIENTS)]
server, inbox, masked = secagg.Server(plan), dict.fromkeys(range(CLIENTS)), {}
while server.step != "nothing":
    step, sizes = server.step, []
    for client, message in inbox.items():
        if (client, step) in {(3, "vectors"), (7, "shares")}:
            continue
        answer = parties[client].respond(message)
        server.receive(client, answer)
        sizes.append(len(answer))
        if step == "vectors":
            masked[client] = answer
    inbox = server.close()
    print(f"{step:<10}  {len(sizes):2} clients, {max(sizes):,} bytes each")

alone = sum(
    vectors[i] for i in server.survivors
)  # modulo 2**32, as uint32 wraps around
total = secagg.total_of(training, start, server.total)
deployed = steps.server(state, total)
print("in the sum:", *server.survivors)
print("the sum of the survivors to the bit:", np.array_equal(server.total, alone))
print(f"the models differ by at most {apart(simulated.value, deployed.value):.0e}")

# %% [markdown]
# ## What the server sees
#
# The model is a linear one, so that a change of it has a picture for each digit. Below
# are those of zero to four, the highest byte of each entry: of a client's vector, of
# what the server got from this client, and of the sum.


# %%
def pictures(octets):
    kernel = octets.view(np.int8)[10:650]  # after the bias
    return kernel.reshape(8, 8, 10).transpose(2, 0, 1)


rows = {
    "client 0 made": (vectors[0] >> 24).astype(np.uint8),
    "the server got": np.frombuffer(masked[0][-plan.length :], np.uint8),
    "the sum": (server.total >> 24).astype(np.uint8),
}
figure, axes = plt.subplots(3, 5, figsize=(6, 3.6), dpi=80, layout="constrained")
for line, (title, octets) in zip(axes, rows.items(), strict=True):
    line[0].set_ylabel(title, rotation=0, ha="right", va="center")
    shown = pictures(octets)[:5]
    for axis, picture in zip(line, shown, strict=True):
        axis.set(xticks=[], yticks=[])
        axis.imshow(picture, cmap="RdBu", vmin=-abs(shown).max(), vmax=abs(shown).max())
plt.show()

# %% [markdown]
# ## What was learnt
#
# - A round is four functions, `broadcast`, `client`, `add` and `server`. `next` drives
#   them for all clients in one program, a deployment one message at a time, and both
#   come to one model, to rounding.
# - Under secure aggregation a message is one vector of integers, of which the server
#   gets noise, and the sum of those who were left, to the bit. `server_view` lists all
#   that it sees, before anything is deployed.
# - What a client reports of its work is in the clear unless it goes through the sum.
#
# What is missing here is a network, clients that crash in the middle of a message, and
# signatures: `make secagg-demo` trains with all of these, each client a process of its
# own. Where machines are not to be kept in the dark, one program can run on all of
# them: `notebooks/many_hosts.py`.
