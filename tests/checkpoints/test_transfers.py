"""Checkpoints in buckets: few requests, the commit marker last, what is read is what was written."""

import tempfile

import jax
import numpy as np
import pytest

from imagen_jax.checkpoints import checkpoints, folders
from imagen_jax.checkpoints.proof import DamagedCheckpointError
from imagen_jax.errors import UserError
from imagen_jax.files import as_path, remove_files, write_bytes
from tests.checkpoints.test_checkpoints import make_state, save
from tests.train import tiny_run


@pytest.fixture(params=["gs", "s3"])
def cloud(request):
    """A bucket's server, and a run directory in it."""
    server = request.getfixturevalue({"gs": "bucket", "s3": "s3_bucket"}[request.param])
    return server, f"{request.param}://bucket-a/run"


def test_a_save_is_a_request_a_file_and_leaves_nothing_on_this_machine(cloud, tmp_path, monkeypatch):
    server, run = cloud
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    state, abstract = make_state()
    server.requests.clear()
    there: list[list[str]] = []

    def note(method: str, path: str) -> None:
        if method in ("POST", "PUT"):
            there.append(server.names())

    server.fault = note
    save(run, state)
    # What makes a checkpoint of them comes when all others are there.
    assert {*server.names()} - {*there[-1]} == {"run/checkpoints/checkpoint_3/digests.json"}
    assert len(there) == len(server.names())
    assert len(server.requests) <= len(there) + 20
    server.requests.clear()
    restored, position = checkpoints.restore(run, abstract)
    assert tiny_run.leaves_equal(state, restored) and position == {"step": 3}
    assert len(server.requests) <= 4 * len(server.names()) + 20  # gcsfs asks what a name is before it reads it.
    assert list((tmp_path / "temporary").iterdir()) == []


def test_sampling_fetches_the_averages_alone(cloud):
    server, run = cloud
    state, _ = make_state()
    save(run, state)
    server.requests.clear()
    jax.tree.map(np.testing.assert_array_equal, checkpoints.load_params(run), jax.device_get(state.ema_params))
    read = [path for method, path in server.requests if method == "GET"]
    assert any("ema_params" in path for path in read)
    assert not any("opt_state" in path or "/params/" in path.replace("%2F", "/") for path in read)


def test_damage_is_told_by_name(cloud):
    server, run = cloud
    state, abstract = make_state()
    save(run, state)
    place = folders.checkpoint_dir(run, 3)
    name = max((name for name in server.names() if "opt_state" in name), key=lambda name: len(server.content(name)))
    address = f"{run.removesuffix('run')}{name}"
    content = server.content(name)
    write_bytes(address, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        DamagedCheckpointError, match=f"{run}/checkpoints/checkpoint_3 is damaged: arrays/opt_state.*change"
    ):
        checkpoints.restore(run, abstract)
    remove_files(place, [name.partition("checkpoint_3/")[2]])
    write_bytes(place / "new", b"")
    # Of what is not read, the names are still compared.
    with pytest.raises(
        DamagedCheckpointError, match=r"arrays/opt_state\S+ \(missing\); new \(not written by the run\)"
    ):
        checkpoints.load_params(run)


def test_what_does_not_arrive_is_no_checkpoint(cloud, monkeypatch):
    server, run = cloud
    state, _ = make_state()
    sent = checkpoints.transfers.send_files

    def one_is_lost(local, folder):
        found = sent(local, folder)
        remove_files(folder, ["config.gin"])
        return found

    monkeypatch.setattr(checkpoints.transfers, "send_files", one_is_lost)
    with pytest.raises(UserError, match="1 files were not written: config.gin"):
        save(run, state)
    assert folders.saved_steps(run) == [] and not as_path(run).exists()
    assert server.names() == []


def test_a_new_save_of_a_quarantined_step_removes_nothing_of_it(cloud):
    server, run = cloud
    save(run, make_state()[0])
    path = folders.checkpoint_dir(run, 3)
    before = {name.partition("checkpoint_3/")[2]: server.content(name) for name in server.names()}
    assert folders.quarantine(path) == "checkpoint_3/digests.json.damaged"
    assert folders.quarantined(run) == [path] and folders.saved_steps(run) == []
    folders.remove_unfinished(run)
    save(run, make_state()[0])
    assert [aside.name for aside in folders.quarantined(run)] == ["checkpoint_3.damaged"]
    assert folders.saved_steps(run) == [3]
    folder = "run/checkpoints/checkpoint_3.damaged/"
    after = {name.removeprefix(folder): server.content(name) for name in server.names() if name.startswith(folder)}
    before["digests.json.damaged"] = before.pop("digests.json")
    assert after == before
