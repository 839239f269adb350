"""A sweep whose folder lies in a bucket: killed and gone on with, it has the bytes of one on this machine."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from imagen_jax.evals import drawn_images
from imagen_jax.evals.sweeps.plan import StageGrid
from imagen_jax.evals.sweeps.prompts import FilePrompts, ShapesPrompts
from imagen_jax.evals.sweeps.sweep import SweepConfig, dry_run, run_sweep
from imagen_jax.report.sweep import write_sweep_page
from tests.untrained import untrained_cascade

URL = "gs://bucket-a/sweep"


class Killed(BaseException):
    """Ends a sweep as a signal does: nothing in the program catches it."""


def test_a_killed_sweep_in_a_bucket_ends_as_one_on_this_machine(
    bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagen_jax.sampling.cascade.drawing_devices", lambda: jax.local_devices()[:1])
    cascade = untrained_cascade()
    prompts = ShapesPrompts(num_single=3, num_two=0, num_count=0, num_heldout=0)
    grids = (StageGrid(stage="sr", aug_level=(0.3,)),)

    def config(folder: str) -> SweepConfig:
        return SweepConfig(run_dir="unused", output_dir=folder, prompts=prompts, grids=grids, batch_size=2)

    write, written = drawn_images.write_png, []

    def killed_at_the_fifth(*args: Any) -> None:
        if len(written) == 4:
            raise Killed
        written.append(args)
        write(*args)

    monkeypatch.setattr(drawn_images, "write_png", killed_at_the_fifth)
    with pytest.raises(Killed):
        run_sweep(config(URL), cascade=cascade)
    monkeypatch.setattr(drawn_images, "write_png", write)
    assert "2 to draw, 4 there already" in dry_run(config(URL), cascade)
    result = run_sweep(config(URL), "imagen_jax sweep", cascade)
    assert run_sweep(config(str(tmp_path / "sweep")), cascade=cascade) == result
    for name in ("sweep.csv", "sweep.json"):
        assert bucket.content(f"sweep/{name}") == (tmp_path / "sweep" / name).read_bytes()
    assert write_sweep_page(URL) == f"{URL}/sweep.html"
    assert bucket.content("sweep/sweep.html").count(b"<img") == 2
    assert not any("lock" in name for name in bucket.names())
    record = json.loads(bucket.content("sweep/sweep_run.json"))
    assert record["nodes"] == 2 and record["command"] == "imagen_jax sweep"


def test_prompts_in_a_bucket(bucket) -> None:
    bucket.add("prompts.txt", "a red cup\n\nsnow\n".encode("utf-8-sig"))
    assert FilePrompts(path="gs://bucket-a/prompts.txt").read().prompts == ("a red cup", "snow")
