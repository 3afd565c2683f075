"""A server of asynchronous rounds steps as the paper's, whatever its clients do."""

import heapq
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.compiling import jit
from tests.helpers import assert_close, assert_same
from tests.training.fedbuff import DATA, SECONDS, WEIGHTS, K, N, fedbuff, model, work

ROBUST = fedagg.robust_aggregator()
MEAN = fedagg.aggregator(fedagg.mean())
change_of = jax.jit(lambda model, row: work(model, row, None)[0])


class Deployment:
    """A server, and what its clients do, one call at a time."""

    def __init__(self, aggregator=MEAN, state: Any = None, **options):
        self.training = fedagg.federated_averaging(
            work, optax.sgd(1.0, momentum=0.5), aggregator
        )
        steps = self.training.steps
        compiled = steps._replace(server=jit(steps.server))
        self.training = self.training._replace(steps=compiled)
        self.wire = fedagg.Wire(aggregator, model())
        self.models = fedagg.Wire(self.training, model())
        self.encode = jit(aggregator.steps.client)
        asked: dict[str, Any] = {"clients": N, "buffer": K, "concurrency": N}
        self.server = fedagg.BufferedServer(
            self.training,
            self.wire,
            self.training.init(model()) if state is None else state,
            **(asked | options),
        )

    def train(self, i) -> Any:
        """The step that a client begins at, and its change; None if it may not."""
        begun = self.server.start(i)
        if begun is None:
            return None
        shared = self.models.decode_shared(begun.told, begun.number)
        row = jax.tree.map(lambda x: x[i], DATA)
        return begun.number, change_of(shared.variables, row)

    def message(self, i, began, change) -> Any:
        """What a client has to offer, or None if it is not awaited."""
        ready = self.server.ready(i, began)
        if ready is None:
            return None
        shared = self.wire.decode_shared(ready.told, ready.number)
        change = jax.tree.map(lambda x: np.float32(ready.discount) * x, change)
        key = jax.random.fold_in(jax.random.key(ready.number), i)
        message = self.encode(shared, change, WEIGHTS[i], key)
        return ready.number, self.wire.encode(jax.device_get(message), ready.number)

    def take_part(self, i):
        trained = self.train(i)
        if trained is None:
            return False
        while (message := self.message(i, *trained)) is not None:
            if self.server.offer(i, *message):
                return True
        return False

    @property
    def number(self):
        return int(self.server.state.number)

    @property
    def w(self):
        return self.server.state.training.variables["w"]


def test_it_is_fedbuff_step_by_step():
    """The server is driven by a queue of events, as the clients of the reference."""
    expected = fedbuff(8, max_staleness=2)
    deployment = Deployment(max_staleness=2)
    queue = [(float(SECONDS[i]), i, deployment.train(i)) for i in range(N)]
    heapq.heapify(queue)
    waiting: list[tuple[float, int]] = []

    while deployment.number < 8:
        now, i, trained = heapq.heappop(queue)
        before = deployment.number
        message = deployment.message(i, *trained)
        assert message is None or deployment.server.offer(i, *message)
        waiting.append((now, i))
        if deployment.number > before:
            np.testing.assert_allclose(
                deployment.w, expected[before][0], rtol=1e-5, atol=1e-6
            )
        for _, j in [x for x in waiting]:
            again = deployment.train(j)
            if again is not None:  # else it is in the buffer
                heapq.heappush(queue, (now + float(SECONDS[j]), j, again))
                waiting = [x for x in waiting if x[1] != j]

    refused = sum(x[3] for x in expected)
    assert deployment.server.counts == {"away": N, "lost": 0, "too_stale": refused}
    assert refused > 0


@pytest.mark.parametrize(
    "aggregator",
    [
        ROBUST,
        pytest.param(
            fedagg.aggregator(fedagg.mean(), fedagg.quantization(4)),
            marks=pytest.mark.deep,
        ),
        pytest.param(fedagg.combining(fedagg.median()), marks=pytest.mark.deep),
    ],
    ids=["quantile bounds", "quantization", "median"],
)
def test_where_nobody_is_stale_it_is_the_synchronous_round(aggregator):
    deployment = Deployment(aggregator, concurrency=K)
    next_round = jit(deployment.training.next)
    state = deployment.training.init(model())

    for number in range(3):
        cohort = list(range(K))  # so that a client's key is that of its row
        trained = [deployment.train(i) for i in cohort]
        for i, made in zip(cohort, trained, strict=True):
            assert deployment.server.offer(i, *deployment.message(i, *made))
        rows = jax.tree.map(lambda x, cohort=cohort: x[np.array(cohort)], DATA)
        key = jax.random.key(number)
        state = next_round(state, rows, WEIGHTS[np.array(cohort)], key).state

        assert deployment.number == number + 1
        assert_close(deployment.server.state.training, state)


def test_what_is_for_an_earlier_step_is_encoded_anew_and_counts_less():
    deployment = Deployment(ROBUST)
    late = deployment.train(0)
    message = deployment.message(0, *late)
    for i in range(1, 1 + K):
        assert deployment.take_part(i)

    assert not deployment.server.offer(0, *message)
    ready = deployment.server.ready(0, late[0])

    assert ready is not None and ready.number == 1
    assert ready.discount == pytest.approx(2**-0.5)
    assert deployment.server.offer(0, *deployment.message(0, *late))


def test_a_client_counts_once_however_often_it_offers():
    deployment = Deployment(buffer=2)
    trained = deployment.train(0)
    message = deployment.message(0, *trained)

    assert deployment.server.offer(0, *message) and deployment.server.offer(0, *message)
    assert deployment.number == 0
    assert deployment.server.ready(0, trained[0]) is None
    assert deployment.take_part(1) and deployment.number == 1
    assert not deployment.server.offer(0, *message)
    assert deployment.server.ready(0, trained[0]) is None
    assert deployment.server.counts == {"away": 0, "lost": 0, "too_stale": 0}


def test_who_is_too_stale_is_refused_and_counted():
    deployment = Deployment(buffer=1, max_staleness=1)
    late = deployment.train(0)
    for _ in range(2):
        assert deployment.take_part(1)

    assert deployment.server.ready(0, late[0]) is None
    assert deployment.server.counts == {"away": 0, "lost": 0, "too_stale": 1}
    assert deployment.take_part(0)


def test_a_place_is_free_when_a_client_is_given_up():
    deployment = Deployment(concurrency=2)
    first = deployment.train(0)
    assert deployment.train(1) is not None
    assert deployment.train(2) is None
    assert deployment.train(0) is not None  # after a crash, in its own place

    deployment.server.give_up(1)
    deployment.server.give_up(1)

    assert deployment.train(2) is not None
    assert deployment.server.counts == {"away": 2, "lost": 1, "too_stale": 0}
    assert deployment.server.offer(0, *deployment.message(0, *first))


def test_a_client_rests_between_steps():
    deployment = Deployment(buffer=1, separation=3)

    came = [deployment.take_part(i) for i in (0, 0, 1, 0, 2, 0)]

    assert came == [True, False, True, False, True, True]
    np.testing.assert_array_equal(deployment.server.state.last[:4], [3, 1, 2, -3])


def test_a_message_that_is_refused_changes_nothing():
    deployment = Deployment(buffer=2)
    trained = deployment.train(0)
    _, data = message = deployment.message(0, *trained)

    with pytest.raises(ValueError, match="bytes"):
        deployment.server.offer(0, 0, data[:-1])
    with pytest.raises(ValueError, match="a Wire wrote"):
        deployment.server.offer(0, 0, b"x" * len(data))
    assert not deployment.server.offer(3, *message)  # was not asked
    with pytest.raises(ValueError, match="began"):
        deployment.server.ready(0, 5)
    with pytest.raises(ValueError, match="client"):
        deployment.server.start(N)

    assert deployment.server.offer(0, *message)


def test_a_client_with_a_nan_is_for_the_stages_of_the_round():
    deployment = Deployment(fedagg.aggregator(fedagg.zeroing(9.0), fedagg.mean()))
    began, change = deployment.train(0)
    broken = jax.tree.map(lambda x: x * jnp.nan, change)

    assert deployment.server.offer(0, *deployment.message(0, began, broken))
    assert deployment.take_part(1) and deployment.take_part(2)

    assert deployment.number == 1 and np.isfinite(deployment.w).all()


def test_a_server_that_was_killed_goes_on(tmp_path):
    saved = []

    def save(state, metrics):
        saved.append(jax.device_get(state))

    def run(folder, kill):
        folder.mkdir()
        deployment = Deployment(ROBUST, folder=folder, on_step=save)
        away = deployment.train(8)
        for turn in range(7):
            if turn in kill:
                state = saved[-1] if saved else None
                deployment = Deployment(
                    ROBUST, state=state, folder=folder, on_step=save
                )
            assert deployment.take_part(turn % 4 + turn // 4)
        assert deployment.server.offer(8, *deployment.message(8, *away))
        saved.clear()
        assert len(list(folder.iterdir())) == 1
        return deployment

    whole = run(tmp_path / "whole", ())
    killed = run(tmp_path / "killed", (2, 3, 5))

    assert killed.number == whole.number == 2
    assert_same(killed.server.state, whole.server.state)
    assert killed.take_part(5) and whole.take_part(5)
    assert_same(killed.server.state, whole.server.state)


@pytest.mark.parametrize("aggregator", [MEAN, ROBUST], ids=["same", "another"])
def test_a_buffer_that_a_run_before_left_is_not_of_this_run(aggregator, tmp_path):
    """A server that was killed in its second buffer, and a run from the start."""
    killed = Deployment(aggregator, buffer=2, folder=tmp_path)
    assert all([killed.take_part(i) for i in (0, 1, 2)])
    (tmp_path / "step-1").rename(tmp_path / "kept")

    again, whole = (Deployment(MEAN, buffer=2, folder=x) for x in (tmp_path, None))
    assert again.take_part(3) and whole.take_part(3)
    (tmp_path / "kept").rename(tmp_path / "step-1")
    for i in (4, 5, 6):
        assert again.take_part(i) and whole.take_part(i)

    assert again.number == whole.number == 2
    assert_same(again.server.state, whole.server.state)


def test_a_step_that_could_not_be_saved_is_tried_again(tmp_path):
    full, written = [True], []

    def save(state, metrics):
        if full[0]:
            raise OSError("no space")
        written.append(state)

    deployment = Deployment(buffer=1, folder=tmp_path, on_step=save)
    trained = deployment.train(0)
    message = deployment.message(0, *trained)
    with pytest.raises(OSError, match="space"):
        deployment.server.offer(0, *message)
    assert deployment.number == 0
    full[0] = False

    again = Deployment(buffer=1, folder=tmp_path, on_step=save)  # after a restart
    assert not deployment.server.offer(0, *message)
    assert deployment.server.ready(0, trained[0]) is None  # it counts

    assert deployment.number == again.number == len(written) / 2 == 1
    assert_same(again.server.state, deployment.server.state)


@pytest.mark.deep
@pytest.mark.parametrize("alone", [True, False])
def test_many_threads_fill_each_buffer_to_its_size(alone):
    """Each has a client of its own, or all have all, which then come twice at once."""
    sizes = []

    def count(state, metrics):
        sizes.append(int((state.last == state.number - 1).sum()))

    deployment = Deployment(ROBUST, concurrency=6, on_step=count)

    def thread(seed):
        order = np.random.default_rng(seed).integers(0, N, 40)
        order = np.full(40, seed) if alone else order
        return sum(deployment.take_part(int(i)) for i in order)

    with ThreadPoolExecutor(8) as pool:
        counted = sum(pool.map(thread, range(8)))

    assert sizes == [K] * deployment.number
    # How many steps there are is for the threads' turns to say: who finds no place free
    # has come in vain.
    assert deployment.number > 0 and np.isfinite(deployment.w).all()
    rest = counted - K * deployment.number
    assert 0 <= rest < K or not alone


def test_noise_of_the_server_is_another_in_each_step():
    noisy = fedagg.aggregator(fedagg.gaussian_noise(1.0, 0.001, 1))
    runs = []
    for key in (1, 1, 2):
        deployment = Deployment(noisy, buffer=1, key=jax.random.key(key))
        assert deployment.take_part(0)
        runs.append(deployment.w)

    assert_same(runs[0], runs[1])
    assert (runs[0] != runs[2]).all()


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"aggregator": fedagg.secure_aggregator()}, ValueError, "secure"),
        ({"buffer": 0}, ValueError, "buffer"),
        ({"buffer": N + 1}, ValueError, "clients"),
        ({"concurrency": 0}, ValueError, "concurrency"),
        ({"max_staleness": -1}, ValueError, "max_staleness"),
        ({"separation": 0}, ValueError, "separation"),
        ({"discount": 1.0}, TypeError, "discount"),
        ({"key": 3}, TypeError, "key"),
    ],
)
def test_what_is_wrong_is_refused_when_it_is_made(options, error, words):
    with pytest.raises(error, match=words):
        Deployment(**options)


def test_a_wire_of_something_else_is_refused():
    training = fedagg.federated_averaging(work, optax.sgd(1.0), MEAN)
    state = training.init(model())
    asked: dict[str, Any] = {"clients": N, "buffer": K, "concurrency": N}

    by_rules = [fedagg.combining(x) for x in (fedagg.median(), fedagg.trimmed_mean(1))]
    rule = fedagg.federated_averaging(work, optax.sgd(1.0), by_rules[0])
    for made, other in ((training, ROBUST), (rule, by_rules[1]), (rule, MEAN)):
        with pytest.raises(ValueError, match="expected one of the aggregator in"):
            fedagg.BufferedServer(made, fedagg.Wire(other, model()), state, **asked)
    wrong: Any = MEAN
    with pytest.raises(TypeError, match="expected a Wire"):
        fedagg.BufferedServer(training, wrong, state, **asked)
    with pytest.raises(ValueError, match="clients of state"):
        saved = Deployment().server.state
        wire = fedagg.Wire(MEAN, model())
        fedagg.BufferedServer(training, wire, saved, **(asked | {"clients": N + 1}))
