"""Metrics written, read back, and drawn."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg


def test_rows_come_back_as_they_were_written(tmp_path):
    rounds = [
        {"mean/weight": jnp.float32(7.5), "bits": jnp.uint32(2**32 - 1)},
        {"mean/weight": jnp.float32(jnp.nan), "bits": 3},
        {"mean/weight": -math.inf, "bits": np.int64(2**40)},
        {"mean/weight": jnp.bfloat16(jnp.inf), "bits": 0},
    ]

    with fedagg.MetricsWriter(tmp_path / "runs" / "1") as log:
        for step, metrics in enumerate(rounds):
            log.write(step, metrics)

    rows = fedagg.read_metrics(tmp_path / "runs" / "1")
    assert [x["step"] for x in rows] == [0, 1, 2, 3]
    assert [x["bits"] for x in rows] == [2**32 - 1, 3, 2**40, 0]
    found = [x["mean/weight"] for x in rows]
    np.testing.assert_equal(found, [7.5, math.nan, -math.inf, math.inf])


def test_each_line_is_json_and_is_there_at_once(tmp_path):
    log = fedagg.MetricsWriter(tmp_path)

    log.write(0, {"loss": jnp.float32(jnp.inf)})

    def fail(constant):
        raise ValueError(constant)

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=fail) == {"step": 0, "loss": "Infinity"}
    log.close()


def test_a_run_that_goes_on_adds_to_what_is_there(tmp_path):
    with fedagg.MetricsWriter(tmp_path) as log:
        for step in range(3):
            log.write(step, {"loss": step})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "lo')
    assert len(fedagg.read_metrics(path)) == 3

    with fedagg.MetricsWriter(tmp_path) as log:
        log.write(2, {"loss": 20.0})
        log.write(3, {"loss": 30.0})

    assert [x["loss"] for x in fedagg.read_metrics(path)] == [0, 1, 20.0, 30.0]


@pytest.mark.parametrize("metrics", [{"loss": jnp.zeros(2)}, {"step": 1.0}])
def test_what_is_no_scalar_is_refused(tmp_path, metrics):
    with fedagg.MetricsWriter(tmp_path) as log:
        with pytest.raises(ValueError, match=f"got '{next(iter(metrics))}' of shape"):
            log.write(0, metrics)
    assert fedagg.read_metrics(tmp_path) == []


@pytest.mark.parametrize(
    "damaged", [b"{", b"5", b'{"a": 1.0}', b"\xff", b'{"step": 0, "a": "x"}']
)
def test_a_file_that_is_damaged_is_refused_by_name(tmp_path, damaged):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + damaged + b"\n")

    with pytest.raises(ValueError, match=r"metrics\.jsonl.* damaged"):
        fedagg.read_metrics(tmp_path)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    events = pytest.importorskip("tensorboardX.proto.event_pb2")

    with fedagg.MetricsWriter(tmp_path, tensorboard=True) as log:
        for step in (4, 5):
            log.write(step, {"mean/weight": jnp.float32(step / 2)})

    (file,) = tmp_path.glob("events.out.tfevents.*")
    data, found = file.read_bytes(), []
    while data:  # a length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        record, data = data[12 : 12 + size], data[16 + size :]
        event = events.Event.FromString(record)
        found += [(event.step, x.tag, x.simple_value) for x in event.summary.value]
    assert found == [(4, "mean/weight", 2.0), (5, "mean/weight", 2.5)]
    assert len(fedagg.read_metrics(tmp_path)) == 2


@pytest.mark.deep
def test_a_run_is_drawn_with_a_panel_for_each_metric(tmp_path):
    pytest.importorskip("matplotlib")
    aggregator = fedagg.aggregator(
        fedagg.with_measurements(fedagg.clipping(1.0), fedagg.mean())
    )
    state, rows = aggregator.init(jnp.zeros(3)), []
    with fedagg.MetricsWriter(tmp_path) as log:
        for step in range(4):
            updates = 10.0**step * jax.random.normal(jax.random.key(step), (5, 3))
            state, _, metrics = aggregator.next(state, updates)
            log.write(step, metrics)
            rows.append({"step": step} | {x: float(y) for x, y in metrics.items()})

    figure = fedagg.plot_metrics(tmp_path)

    drawn = {x.get_title(): x.lines[0].get_xydata() for x in figure.axes}
    assert drawn.keys() == rows[0].keys() - {"step"}
    for name, points in drawn.items():
        np.testing.assert_array_equal(points, [(x["step"], x[name]) for x in rows])
    figure.savefig(tmp_path / "metrics.png")
    assert (tmp_path / "metrics.png").stat().st_size > 10_000


def test_what_spans_magnitudes_or_is_not_finite_shows():
    pytest.importorskip("matplotlib")
    losses = [1e-3, math.nan, 5.0, math.inf]
    rows = [{"step": i, "a/loss": x, "b": 1.0} for i, x in enumerate(losses)]

    figure = fedagg.plot_metrics(rows, "a/*")

    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert list(axes.lines[1].get_xdata()) == [1.0, 3.0]
    with pytest.raises(ValueError, match="pattern: no metric is like 'c'"):
        fedagg.plot_metrics(rows, "c")
