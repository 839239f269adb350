"""Averages, files and TensorBoard records."""

import json
import struct
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.util import event_pb2

from imagen_jax.errors import UserError
from imagen_jax.train.bad_steps import BadSteps
from imagen_jax.train.event_file import EventFile
from imagen_jax.train.metrics import MetricWriter, Window, drop_lines_after
from imagen_jax.train.objective import Mean
from imagen_jax.train.stage_objective import BUCKET_NAMES


def row(mean: float, sums: list[float], counts: list[float], **changes: float) -> dict[str, Any]:
    values: dict[str, Any] = {
        "loss": mean,
        "grad_norm": 1,
        "param_norm": 2,
        "learning_rate": 0.5,
        "skipped": 0,
    }
    row: dict[str, Any] = {name: jnp.asarray(value, jnp.float32) for name, value in (values | changes).items()}
    means = {"loss_by_log_snr": Mean(jnp.asarray(sums, jnp.float32), jnp.asarray(counts, jnp.float32))}
    return row | {"means": means}


def test_buckets_are_averaged_over_examples_not_over_steps():
    window = Window(4, 3, 1_000_000, 1e9, {"loss_by_log_snr": BUCKET_NAMES})
    window.start()
    window.data_ready()
    window.add(row(1.0, [1, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]))
    time.sleep(0.02)
    window.data_ready()
    window.add(row(3.0, [8, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 2]))
    line = window.close()
    assert line["step"] == 6
    assert line["loss"] == 2.0
    assert line["loss_by_log_snr"] == {"-inf..-6": 3.0, "6..inf": 1.0}
    assert BUCKET_NAMES == ("-inf..-6", "-6..-3", "-3..0", "0..3", "3..6", "6..inf")
    assert line["data_s"] >= 0.01
    assert line["mfu"] == pytest.approx(1e6 / line["step_time_s"] / 1e9)
    assert line["images_per_s"] == pytest.approx(3 / line["step_time_s"])
    window.add(row(5.0, [5, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]))
    assert window.close()["loss"] == 5.0


def test_scalar_metrics_are_means_over_examples_and_left_out_where_nothing_counts():
    window = Window(0, 3, 1, None, {"accuracy": (), "never": ()})
    assert "never" not in window_line(window, [(3.0, 4.0), (0.0, 8.0)])
    assert window_line(window, [(3.0, 4.0), (0.0, 8.0)])["accuracy"] == 0.25
    assert window_line(window, [(5.0, 5.0)])["accuracy"] == 1.0


def window_line(window: Window, accuracies: list[tuple[float, float]]) -> dict[str, Any]:
    """The line of steps that measured these (sum, count)."""
    for total, count in accuracies:
        means = {"accuracy": Mean(jnp.float32(total), jnp.float32(count)), "never": Mean(jnp.zeros(()), jnp.zeros(()))}
        window.add(row(1.0, [], []) | {"means": means})
    return window.close()


def test_skipped_steps_are_in_no_average_and_counted():
    window = Window(0, 3, 1, None, {"loss_by_log_snr": BUCKET_NAMES}, BadSteps(2))
    bad = {"loss": np.nan, "grad_norm": np.inf, "skipped": 1}
    for one in (row(1.0, [2] * 6, [1] * 6), row(0, [np.nan] * 6, [1] * 6, **bad), row(3.0, [4] * 6, [1] * 6)):
        window.add(one)
    line = window.close()
    assert (line["loss"], line["grad_norm"], line["skipped_steps"]) == (2, 1, 1)
    assert set(line["loss_by_log_snr"].values()) == {3}
    window.add(row(1.0, [1] * 6, [1] * 6))
    assert "skipped_steps" not in window.close()


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_the_first_bad_step_of_an_interval_is_named(name):
    window = Window(10, 3, 1, None)
    window.add(row(1.0, [1] * 6, [1] * 6))
    window.check()
    for value in (1.0, np.inf, np.nan):
        window.add(row(1.0, [1] * 6, [1] * 6, **{name: value, "skipped": not np.isfinite(value)}))
    with pytest.raises(UserError, match=rf"not finite at step 13: .*{name} = inf.*skipped in a row: 1 "):
        window.check()


def test_parameters_that_are_not_finite_stop_the_run():
    window = Window(0, 3, 1, None, bad_steps=BadSteps(10))
    window.add(row(1.0, [], [], param_norm=np.inf))
    with pytest.raises(UserError, match="the parameters are not finite after step 1"):
        window.check()


def test_lines_after_the_restored_step_and_torn_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    drop_lines_after(tmp_path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"step": 1}\n{"step": 2}')
    drop_lines_after(tmp_path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n', "a whole line is kept without its line break"


@pytest.mark.parametrize(
    "line", [b"[1, 2]", b"3", b"null", b'{"loss": 1}', b'{"step": null}', b"\xff", b"{", b"[" * 9999,
     b'{"step": NaN}', b'{"step": Infinity}', b'{"step": "2"}', b'{"step": true}', b'{"step": 1' + b"0" * 400 + b"}",
     b"", b"\0" * 9]
)  # fmt: skip
def test_a_line_that_is_no_metrics_is_told_and_nothing_is_lost(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    before = b'{"step": 1}\n' + line + b'\n{"step": 3}\n'
    path.write_bytes(before)
    with pytest.raises(UserError, match='line 2 is .*expected a JSON object with a number "step"; delete') as refused:
        drop_lines_after(tmp_path, 2)
    assert "\n" not in str(refused.value) and path.read_bytes() == before


def read_events(directory) -> list[dict]:
    """Events of a log directory, read by TensorFlow (which checks both checksums of a record)."""
    events = []
    for path in sorted(directory.iterdir()):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            events.append(json_format.MessageToDict(event_pb2.Event.FromString(record)))
    return events


def test_tensorflow_reads_the_event_file(tmp_path):
    events = EventFile(tmp_path, start_step=200)
    events.scalars(300, {"loss": 0.25, "loss_by_log_snr/-6..-3": -1.5})
    events.image(70_000, "samples", b"\x89PNG", 12, 300)
    events.close()
    version, restart, scalars, image = read_events(tmp_path)
    assert version["fileVersion"] == "brain.Event:2"
    assert restart["step"] == "201" and restart["sessionLog"] == {"status": "START"}
    assert scalars["step"] == "300" and abs(scalars["wallTime"] - time.time()) < 60
    assert [(v["tag"], v["simpleValue"]) for v in scalars["summary"]["value"]] == [
        ("loss", 0.25),
        ("loss_by_log_snr/-6..-3", -1.5),
    ]
    (value,) = image["summary"]["value"]
    assert image["step"] == "70000" and value["tag"] == "samples"
    assert (value["image"]["height"], value["image"]["width"], value["image"]["colorspace"]) == (12, 300, 3)


def test_every_event_is_on_the_disk_before_the_file_is_closed(tmp_path):
    events = EventFile(tmp_path)
    events.scalars(1, {"loss": 0.5})
    assert [event.get("step") for event in read_events(tmp_path)] == [None, "1", "1"]
    events.close()


def test_a_restart_in_the_same_second_has_a_file_of_its_own_that_comes_later(tmp_path):
    for start in (0, 20, 10):
        events = EventFile(tmp_path, start)
        events.scalars(start + 5, {"loss": 0.5})
        events.close()
    assert len(list(tmp_path.iterdir())) == 3
    steps = [event["step"] for event in read_events(tmp_path) if "step" in event]
    assert steps == ["1", "5", "21", "25", "11", "15"]


def test_writer_appends_lines_and_flattens_nested_curves(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer.write({"step": 1, "loss": 0.5, "loss_by_log_snr": {"0..3": 0.125}})
    writer.write({"step": 2, "loss": 0.25, "loss_by_log_snr": {}})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    tags = [v["tag"] for event in read_events(tmp_path / "tensorboard")[2:] for v in event["summary"]["value"]]
    assert tags == ["loss", "loss_by_log_snr/0..3", "loss"]


def test_varints_longer_than_a_byte_round_trip(tmp_path):
    events = EventFile(tmp_path)
    for step in (127, 128, 2**31, 2**40):
        events.scalars(step, {"x": struct.unpack("<f", b"\x01\x02\x03\x04")[0]})
    events.close()
    assert [int(event["step"]) for event in read_events(tmp_path)[2:]] == [127, 128, 2**31, 2**40]
