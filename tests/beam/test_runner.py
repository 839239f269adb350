"""Beam's options and endings."""

from types import SimpleNamespace

import pytest

# `make beam-test` installs it.
pytest.importorskip("apache_beam")

import apache_beam as beam
from apache_beam.options.pipeline_options import StandardOptions

from imagen_jax.beam.runner import pipeline_options, run
from imagen_jax.errors import UserError


def test_options() -> None:
    local = pipeline_options(["--runner=DirectRunner", "--direct_num_workers=2"])
    assert local.view_as(StandardOptions).runner == "FnApiRunner"  # DirectRunner's engine, without a download
    assert pipeline_options(["--runner=DataflowRunner"]).view_as(StandardOptions).runner == "DataflowRunner"
    with pytest.raises(UserError, match="nor Apache Beam knows --directnum and --wrong;"):
        pipeline_options(["--wrong", "--directnum", "2"])


def test_a_cancelled_pipeline_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = SimpleNamespace(wait_until_finish=lambda: "CANCELLED")
    monkeypatch.setattr(beam.Pipeline, "run", lambda self: cancelled)
    with pytest.raises(UserError, match="ended as CANCELLED, expected DONE"):
        run(lambda pipeline: None, pipeline_options([]))


@pytest.mark.parametrize(
    ("raised", "kind", "told"),
    [
        ("imagen_jax.errors.UserError: shard x is damaged", UserError, "shard x is damaged"),
        ("OSError: [Errno 28] No space left on device", OSError, "a worker failed: [Errno 28] No space left on device"),
        ("gcsfs.retry.HttpError: Backend Error, 503", OSError, "a worker failed: Backend Error, 503"),
        ("OSError: PERMISSION_DENIED: no", OSError, "a worker failed: PERMISSION_DENIED: no"),
    ],
)
def test_what_a_worker_of_another_process_met_is_told(monkeypatch: pytest.MonkeyPatch, raised, kind, told) -> None:
    def fail(self: beam.Pipeline) -> None:
        raise RuntimeError(f"Error processing instruction 3.\nTraceback:\n{raised} [while running 'write']\n\nmore")

    monkeypatch.setattr(beam.Pipeline, "run", fail)
    with pytest.raises(kind) as caught:
        run(lambda pipeline: None, pipeline_options([]))
    assert str(caught.value) == told
