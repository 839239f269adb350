"""Checkpoints: what is read is what was written, or a refusal that says why."""

import os
import random
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from imagen_jax.checkpoints import checkpoints, folders, proof
from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.errors import UserError
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.train.optimizer import OptimizerConfig
from imagen_jax.train.stage_objective import StageObjective
from imagen_jax.train.state import abstract_state, init_state, shardings_of
from tests.train import tiny_run

ADAM = OptimizerConfig(name="adam").build()
ADAFACTOR = OptimizerConfig().build()


def one_device():
    return MeshConfig().build(jax.devices()[:1])


def make_state(step: int = 3, optimizer=ADAM, stage=None, mesh=None) -> tuple[TrainState, TrainState]:
    """A state with different values in every part, and its abstract form."""
    stage = stage or tiny_run.tiny_stage()
    objective = StageObjective(stage=stage)
    abstract = abstract_state(objective, optimizer, mesh or one_device())
    state = jax.jit(lambda: init_state(objective, optimizer, 0), out_shardings=shardings_of(abstract))()
    ema = jax.tree.map(lambda leaf: leaf * 0.5, state.params)
    return state.replace(step=state.step + step, ema_params=ema), abstract


def save(model_dir: Path, state: TrainState, keep: int = 5) -> Path:
    return checkpoints.save(
        model_dir, state, {"step": int(state.step)}, {"config.gin": b"# config", "vocabulary/v": b"x"}, keep
    )


@pytest.mark.parametrize("optimizer", [ADAM, ADAFACTOR], ids=["adam", "adafactor"])
def test_round_trip_is_exact(tmp_path, optimizer):
    state, abstract = make_state(optimizer=optimizer)
    save(tmp_path, state)
    restored, position = checkpoints.restore(tmp_path, abstract)
    assert tiny_run.leaves_equal(state, restored)
    assert str(jax.tree.structure(state)) == str(jax.tree.structure(restored))
    assert position == {"step": 3}
    path = folders.checkpoint_dir(tmp_path, 3)
    assert (path / "config.gin").read_text() == "# config" and (path / "vocabulary" / "v").read_bytes() == b"x"


def test_restores_onto_another_mesh(tmp_path):
    state, _ = make_state(mesh=MeshConfig(fsdp=8).build())
    save(tmp_path, state)
    for mesh in (one_device(), MeshConfig(data=2, fsdp=2, tensor=2).build()):
        _, abstract = make_state(mesh=mesh)
        restored, _ = checkpoints.restore(tmp_path, abstract)
        assert tiny_run.leaves_equal(jax.device_get(state), jax.device_get(restored))
        assert all(jax.tree.leaves(jax.tree.map(lambda leaf, want: leaf.sharding == want.sharding, restored, abstract)))


def test_parameters_load_without_the_optimizer_and_without_the_model(tmp_path):
    state, _ = make_state(mesh=MeshConfig(fsdp=8).build())
    save(tmp_path, state)
    for ema, expected in ((True, state.ema_params), (False, state.params)):
        loaded = checkpoints.load_params(tmp_path, ema=ema)
        assert tiny_run.leaves_equal(jax.device_get(expected), jax.device_get(loaded))
        assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(loaded))


def test_newest_checkpoint_is_taken_and_old_ones_are_removed(tmp_path):
    for step in (9, 10, 100):
        save(tmp_path, make_state(step)[0], keep=2)
    assert folders.saved_steps(tmp_path) == [10, 100]
    assert folders.latest_step(tmp_path) == 100
    restored, _ = checkpoints.restore(tmp_path, make_state()[1])
    assert int(restored.step) == 100
    restored, _ = checkpoints.restore(tmp_path, make_state()[1], step=10)
    assert int(restored.step) == 10


def test_any_flipped_byte_is_found_and_the_file_named(tmp_path):
    path = save(tmp_path, make_state()[0])
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
    chooser = random.Random(0)
    for file in files:
        if file.name == "digests.json":
            continue
        original = file.read_bytes()
        damaged = bytearray(original)
        damaged[chooser.randrange(len(damaged))] ^= 1 << chooser.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged") as caught:
            checkpoints.load_params(tmp_path)
        assert f"{file.relative_to(path)} (changed)" in str(caught.value)
        assert f"rename it to {path.name}.damaged" in str(caught.value)
        file.write_bytes(original)
    checkpoints.load_params(tmp_path)


def test_missing_and_foreign_files_are_named(tmp_path):
    path = save(tmp_path, make_state()[0])
    (path / "config.gin").unlink()
    (path / "extra").write_text("x")
    with pytest.raises(UserError, match=r"config.gin \(missing\); extra \(not written by the run\)"):
        checkpoints.restore(tmp_path, make_state()[1])
    (path / "digests.json").write_text("{")
    with pytest.raises(UserError, match="no readable digests.json"):
        checkpoints.restore(tmp_path, make_state()[1])


def test_what_people_keep_beside_checkpoints_is_theirs(tmp_path):
    path = save(tmp_path, make_state(3)[0])
    beside = path.parent
    (beside / "checkpoint_9").write_text("a file")
    (beside / "checkpoint_7.partial").write_text("a file")
    for name in ("checkpoint_007", "checkpoint_٤", "checkpoint_x.partial", "checkpoint_-1"):
        (beside / name).mkdir()
    (beside / "checkpoint_10").symlink_to("checkpoint_10")
    (beside / "checkpoint_11.partial").symlink_to(path)
    (beside / "checkpoint_3.damaged").symlink_to("nowhere")
    before = {entry.name for entry in beside.iterdir()}
    assert folders.saved_steps(tmp_path) == [3]
    checkpoints.remove_partial(tmp_path)
    assert {entry.name for entry in beside.iterdir()} == before and (path / "digests.json").exists()
    assert folders.quarantine(path) == "checkpoint_3.damaged1"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("digests.json", '["arrays"]', "digests.json has .* for its content; expected an object"),
        ("digests.json", '{"config.gin": 1}', "digests.json has 1 for config.gin; expected a str"),
        ("position.json", '{"step": "3", "position": {}}', "position.json has '3' for step; expected a count"),
        ("position.json", '{"step": 3}', "position.json has no position"),
        ("position.json", '{"step": 2147483648, "position": {}}', r"position.json has 2147483648 .* below 2\*\*31"),
        ("position.json", "{", "no readable position.json"),
        ("arrays/params/_METADATA", "{", "arrays of checkpoint .* cannot be read .JSONDecodeError.*versions.json"),
    ],
)
def test_files_with_digests_of_their_own_are_read_with_care(tmp_path, name, content, message):
    path = save(tmp_path, make_state()[0])
    (path / name).write_text(content)
    if name != "digests.json":
        proof.write_digests(path)
    with pytest.raises(UserError, match=message) as error:
        checkpoints.restore(tmp_path, make_state()[1])
    assert isinstance(error.value, proof.DamagedCheckpointError) == name.endswith(".json")


def test_what_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = save(tmp_path, make_state()[0])
    for file in (path / "digests.json", path / "position.json"):
        aside = file.rename(tmp_path / "aside")
        file.symlink_to("/proc/self/mem")  # Whose first page nobody can read: an input/output error.
        with pytest.raises(UserError, match="cannot be read .*its bytes may be sound") as caught:
            checkpoints.load_params(tmp_path)
        assert not isinstance(caught.value, proof.DamagedCheckpointError)
        file.unlink()
        aside.rename(file)
    checkpoints.load_params(tmp_path)

    scandir = os.scandir

    def refusing(folder):
        if Path(folder).name == "vocabulary":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)  # Tests may run as root, to whom nothing is refused.
    with pytest.raises(UserError, match="cannot be read .*Permission denied.*vocabulary"):
        checkpoints.load_params(tmp_path)


def test_every_missing_chunk_and_array_is_found(tmp_path):
    mesh = MeshConfig(fsdp=8).build()
    state, _ = make_state(mesh=mesh)
    arrays = save(tmp_path, state) / "arrays"
    for item in checkpoints.ITEMS:
        proof.check_chunks(arrays / item, len(jax.tree.leaves(getattr(state, item))))
    base = {"driver": "file", "path": f"{arrays / 'params'}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    # The kernel's 16 output channels lie on eight devices.
    store.delete_range(tensorstore.KvStore.KeyRange("Conv_0.kernel/0.0.0.3", "Conv_0.kernel/0.0.0.5")).result()
    with pytest.raises(UserError, match=r"2 parts of params.*: Conv_0.kernel/0.0.0.3; Conv_0.kernel/0.0.0.4; "):
        proof.check_chunks(arrays / "params", len(jax.tree.leaves(state.params)))
    store.delete_range(tensorstore.KvStore.KeyRange("Conv_0.kernel/", "Conv_0.kernel0")).result()
    with pytest.raises(UserError, match="1 parts of params were not written: 1 arrays"):
        proof.check_chunks(arrays / "params", len(jax.tree.leaves(state.params)))


def test_a_checkpoint_that_lacks_a_chunk_is_not_made(tmp_path, monkeypatch):
    """Orbax itself writes all; what another process wrote to a disk of its own would be missing like this."""
    save(tmp_path, make_state(1)[0])
    saver = checkpoints._saver

    def forgetful():
        checkpointer = saver()
        write = checkpointer.save

        def save_and_forget(directory, **arguments):
            write(directory, **arguments)
            base = {"driver": "file", "path": f"{directory / 'ema_params'}/"}
            store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
            store.write("Conv_0.bias/0", None).result()

        checkpointer.save = save_and_forget
        return checkpointer

    monkeypatch.setattr(checkpoints, "_saver", forgetful)
    with pytest.raises(UserError, match=r"ema_params were not written: Conv_0.bias/0; .*Older .* intact \(1\)"):
        save(tmp_path, make_state(2)[0])
    assert os.listdir(tmp_path / "checkpoints") == ["checkpoint_1"]


def test_every_leaf_of_another_model_is_named(tmp_path):
    state, abstract = make_state()
    params = dict(state.params)
    params["Extra_0"] = {"kernel": jnp.zeros((2,))}
    params["Dense_0"] = {
        "kernel": state.params["Dense_0"]["kernel"].astype(jnp.bfloat16),
        "bias": jnp.zeros((7,)),
    }
    del params["Conv_1"]
    save(tmp_path, state.replace(params=params))
    with pytest.raises(UserError) as caught:
        checkpoints.restore(tmp_path, abstract)
    message = str(caught.value)
    for line in (
        "5 leaves differ",
        "missing: params.Conv_1.bias: got nothing, expected float32[3]",
        "missing: params.Conv_1.kernel: got nothing, expected float32[3,3,16,3]",
        "different: params.Dense_0.bias: got float32[7], expected float32[16]",
        "different: params.Dense_0.kernel: got bfloat16[17,16], expected float32[17,16]",
        "unexpected: params.Extra_0.kernel: got float32[2], expected nothing",
    ):
        assert line in message
    assert "\n" not in message


def test_another_optimizer_is_refused(tmp_path):
    save(tmp_path, make_state(optimizer=ADAM)[0])
    with pytest.raises(
        UserError, match=r"of another optimizer, \d+ leaves differ: .*opt_state.*mu.*more; use"
    ) as caught:
        checkpoints.restore(tmp_path, make_state(optimizer=ADAFACTOR)[1])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


def test_a_checkpoint_removed_while_it_is_read_gives_way_to_the_newer_one(tmp_path):
    save(tmp_path, make_state(3)[0])
    seen: list[str] = []

    def read(path: Path) -> str:
        seen.append(path.name)
        if len(seen) == 1:
            save(tmp_path, make_state(9)[0], keep=1)
            # What tensorstore makes of files that are gone is not told apart from other faults.
            (path / "position.json").read_text()
        return path.name

    assert checkpoints.read_newest(tmp_path, read) == "checkpoint_9"
    assert seen == ["checkpoint_3", "checkpoint_9"]


def test_values_of_a_checkpoint_that_was_removed_meanwhile_are_not_taken(tmp_path):
    save(tmp_path, make_state(3)[0])

    def read(path: Path) -> int:
        if path.name == "checkpoint_3":
            save(tmp_path, make_state(9)[0], keep=1)
            return 3
        return 9

    assert checkpoints.read_newest(tmp_path, read) == 9


def test_a_fault_of_a_checkpoint_that_stays_is_told_at_once(tmp_path):
    save(tmp_path, make_state(3)[0])
    calls: list[Path] = []

    def read(path: Path) -> None:
        calls.append(path)
        raise ValueError("its own fault")

    with pytest.raises(ValueError, match="its own fault"):
        checkpoints.read_newest(tmp_path, read)
    assert len(calls) == 1


def test_half_written_directory_is_never_whole_and_is_cleaned_up(tmp_path, monkeypatch):
    save(tmp_path, make_state(2)[0])

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders.os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, make_state(4)[0])
    names = sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir())
    assert names == ["checkpoint_2", "checkpoint_4.partial"]
    assert folders.saved_steps(tmp_path) == [2]
    checkpoints.remove_partial(tmp_path)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["checkpoint_2"]
    save(tmp_path, make_state(4)[0])
    assert folders.latest_step(tmp_path) == 4


FULL_DISK = """
import resource, sys
from pathlib import Path
from imagen_jax.errors import UserError
from tests.checkpoints.test_checkpoints import make_state, save
model_dir = Path(sys.argv[1])
save(model_dir, make_state(1)[0])
# No file may grow beyond the limit: the first one fails in orbax, the second in the files written after it.
for step, limit in ((2, 200), (3, 3000)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save(model_dir, make_state(step)[0])
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_write_that_fails_is_told_and_leaves_older_checkpoints_whole(tmp_path):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    for step, message in zip((2, 3), child.stdout.splitlines(), strict=True):
        assert message.startswith("could not write checkpoint") and f"checkpoint_{step}:" in message
        assert "Older checkpoints are intact (1)" in message
    assert "Traceback" not in child.stderr and "ERROR" not in child.stderr
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["checkpoint_1"]
    restored, _ = checkpoints.restore(tmp_path, make_state()[1])
    assert int(restored.step) == 1


def test_existing_checkpoint_is_not_overwritten(tmp_path):
    save(tmp_path, make_state()[0])
    with pytest.raises(UserError, match="never overwritten"):
        save(tmp_path, make_state()[0])


def test_asking_for_what_is_not_there(tmp_path):
    assert folders.latest_step(tmp_path) is None
    with pytest.raises(UserError, match="no checkpoint under"):
        checkpoints.load_params(tmp_path)
    save(tmp_path, make_state(3)[0])
    with pytest.raises(UserError, match="no checkpoint of step 7.*choose from 3"):
        checkpoints.load_params(tmp_path, step=7)


def test_values_come_back_on_a_state_of_other_values(tmp_path):
    state, abstract = make_state()
    save(tmp_path, state)
    restored, _ = checkpoints.restore(tmp_path, abstract)
    kernel = np.asarray(restored.ema_params["Conv_0"]["kernel"])
    np.testing.assert_array_equal(kernel, 0.5 * np.asarray(state.params["Conv_0"]["kernel"]))
