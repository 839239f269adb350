"""`imagen_jax checkpoints`: list, verify, prune, copy and diff, on a disk and in a bucket."""

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.checkpoints import checkpoints, folders, marks
from imagen_jax.errors import UserError
from imagen_jax.files import as_path, write_bytes
from imagen_jax.main import main
from tests.checkpoints.test_checkpoints import make_state, save
from tests.train import tiny_run


@pytest.fixture(scope="module")
def states():
    """A state and its abstract form; another state of the same run."""
    state, abstract = make_state(3)
    kernel = state.params["Conv_0"]["kernel"]
    params = {**state.params, "Conv_0": {**state.params["Conv_0"], "kernel": kernel.at[0, 0, 0, 0].add(0.25)}}
    return state, abstract, state.replace(step=jnp.int32(9), params=params)


@pytest.fixture
def run(tmp_path, states):
    """A run directory with checkpoints 3 and 9, of which 3 is the best."""
    save(tmp_path / "run", states[0])
    save(tmp_path / "run", states[2])
    marks.write_best(tmp_path / "run", 3, {})
    return tmp_path / "run"


def said(capsys, *words) -> list[str]:
    """Lines of a mode that succeeds."""
    assert main(["checkpoints", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_list_tells_size_age_and_what_each_is(run, capsys):
    folders.quarantine(folders.checkpoint_dir(run, 9))
    marks.write_finished(run, 3)
    table = [line.split(maxsplit=3) for line in said(capsys, "list", run)]
    assert table[0] == ["checkpoint", "MB", "hours", "old  is"]
    assert table[1] == ["checkpoint_3", "0.0", "0.0", "whole, the best, the end of the run"]
    assert table[2] == ["checkpoint_9.damaged", "0.0", "-", "damaged, set aside"]
    assert main(["checkpoints", "list", str(run.parent)]) == 2
    assert "no checkpoint under" in capsys.readouterr().err


def test_verify_names_what_is_damaged_and_ends_with_1(run, capsys):
    assert said(capsys, "verify", run) == ["checkpoint_3: whole", "checkpoint_9: whole"]
    (folders.checkpoint_dir(run, 9) / "config.gin").write_text("other")
    with pytest.raises(SystemExit) as ended:
        main(["checkpoints", "verify", str(run)])
    out = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1
    assert out[0] == "checkpoint_3: whole" and "config.gin (changed)" in out[1] and len(out) == 2
    assert said(capsys, "verify", run, "--step=best") == ["checkpoint_3: whole"]


def test_prune_keeps_the_newest_the_best_and_every_kth(run, states, capsys):
    for step in (10, 11, 12, 13):
        save(run, states[0].replace(step=jnp.int32(step)), keep=9)
    flags = ("prune", run, "--keep=1", "--keep_every=5")
    assert said(capsys, *flags, "--dry_run") == [f"checkpoint_{step}: would be removed" for step in (9, 11, 12)]
    assert folders.saved_steps(run) == [3, 9, 10, 11, 12, 13]
    assert said(capsys, *flags) == [f"checkpoint_{step}: removed" for step in (9, 11, 12)]
    assert folders.saved_steps(run) == [3, 10, 13]
    (run / marks.BEST).write_text("{")
    assert main(["checkpoints", *map(str, flags)]) == 2
    with pytest.raises(SystemExit):
        main(["checkpoints", "prune", str(run), "--keep=0"])


def test_copy_goes_to_a_bucket_and_back_bit_for_bit(bucket, run, states, capsys):
    there, back = "gs://bucket-a/run", run.parent / "back"
    assert said(capsys, "copy", run, there) == [f"{there}/checkpoints/checkpoint_9"]
    assert said(capsys, "copy", f"{there}/checkpoints/checkpoint_9", back) == [f"{back}/checkpoints/checkpoint_9"]
    restored, position = checkpoints.restore(back, states[1])
    assert tiny_run.leaves_equal(restored, states[2]) and position == {"step": 9}
    assert said(capsys, "list", there)[1].endswith("whole") and said(capsys, "verify", there) == ["checkpoint_9: whole"]
    assert main(["checkpoints", "copy", str(run), there]) == 2
    assert "exists already and is never overwritten" in capsys.readouterr().err
    # What is damaged on its way out leaves nothing that passes for whole.
    write_bytes(as_path(there) / "checkpoints" / "checkpoint_9" / "config.gin", b"other")
    assert main(["checkpoints", "copy", there, str(run.parent / "third")]) == 2
    assert "config.gin (changed)" in capsys.readouterr().err
    assert list((run.parent / "third" / "checkpoints").iterdir()) == []


def test_copies_of_parameters_alone_load_but_do_not_resume(run, states, capsys):
    state, abstract, _ = states
    first = folders.checkpoint_dir(run, 3)
    averages, both = run.parent / "averages", run.parent / "both"
    said(capsys, "copy", first, averages, "--ema_only")
    said(capsys, "copy", first, both, "--params_only")
    for where, ema in ((averages, True), (both, True), (both, False)):
        wanted = jax.device_get(state.ema_params if ema else state.params)
        assert tiny_run.leaves_equal(jax.device_get(checkpoints.load_params(where, ema=ema)), wanted)
        assert tiny_run.leaves_equal(
            jax.device_get(checkpoints.restore_params(where, abstract.params, ema=ema)), wanted
        )
    with pytest.raises(UserError, match="has no params: it is a copy of parameters alone"):
        checkpoints.load_params(averages, ema=False)
    with pytest.raises(UserError, match="has no opt_state: .* init_from"):
        checkpoints.restore(both, abstract)
    assert (
        said(capsys, "diff", averages, both)[-3:]
        == [
            f"params: only in {folders.checkpoint_dir(both, 3)}",
            "ema_params: 6 of 6 leaves equal bit for bit",
        ][-3:]
    )


def test_diff_tells_config_and_the_largest_difference_of_each_leaf(run, capsys):
    other = run.parent / "other"
    state, _ = make_state(3)
    checkpoints.save(other, state, {"step": 3}, {"config.gin": b"# config\nA.b = 1"}, 5)
    one, nine = (folders.checkpoint_dir(run, step) for step in (3, 9))
    assert said(capsys, "diff", one, nine)[:2] == [
        "params.Conv_0.kernel: differs by 0.25 at most",
        "params: 5 of 6 leaves equal bit for bit",
    ]
    lines = said(capsys, "diff", one, other)
    assert lines[0] == "config: +A.b = 1" and lines[1] == "params: 6 of 6 leaves equal bit for bit"
