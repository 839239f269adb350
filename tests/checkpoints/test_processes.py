"""Checkpoints of two processes: both see one folder, one of them verifies, and both end alike."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from imagen_jax.checkpoints import folders

REPOSITORY = Path(__file__).parents[2]
# Arguments: port, number of the process, a folder that both see, one of its own, what to do. Prints as JSON what
# happened.
HOST = """
import dataclasses, json, sys, types
import jax
port, index, common, own, wanted = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, int(index), heartbeat_timeout_seconds=10)
from imagen_jax.files import whole
from imagen_jax.checkpoints import checkpoints
from imagen_jax.checkpoints.processes import barrier
from imagen_jax.errors import UserError
from imagen_jax.files import write_text
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.train.loop import train
from imagen_jax.train.metrics import PassedOver
from imagen_jax.train.run_dir import check_one_folder, only_trainer
from imagen_jax.train.setup import _own_checkpoint
from tests.checkpoints.test_checkpoints import make_state, save
from tests.train import tiny_run

state, abstract = make_state(2, mesh=MeshConfig(fsdp=4).build())
hashed, told = [], {}
sha256_of_file = whole.sha256_of_file
whole.sha256_of_file = lambda path: (hashed.append(path), sha256_of_file(path))[1]

data = dataclasses.replace(tiny_run.tiny_config(own).data, store_dir=None)

def see(folder):
    with only_trainer(folder):
        check_one_folder(folder)

def restore(folder):
    hashed.clear()
    restored, _ = checkpoints.restore(folder, abstract)
    mine = [jax.tree.map(lambda leaf: leaf.addressable_data(0), tree) for tree in (state, restored)]
    return [tiny_run.leaves_equal(*mine), len(hashed)]

def restore_damaged(folder):
    if index == "0":
        write_text(f"{folder}/checkpoints/checkpoint_2/config.gin", "other")
    barrier("damaged")
    restore(folder)

def go_back(folder):
    save(folder, state.replace(step=state.step - 1))
    parts = types.SimpleNamespace(model_dir=folder), types.SimpleNamespace(state=abstract)
    restored, position, origin = _own_checkpoint(*parts)
    mine = [jax.tree.map(lambda leaf: leaf.addressable_data(0), tree) for tree in (state.params, restored.params)]
    return [int(restored.step), position, tiny_run.leaves_equal(*mine), origin]

def count(folder):
    mine = {(0, 7), (1, int(index))}
    counted = PassedOver(lambda: mine)
    first = counted.count()
    mine.add((0, 8 + int(index)))
    return [first, counted.count(), counted.count()]

for name, task, folder in (
    ("see common", see, common),
    ("train own", lambda folder: train(tiny_run.tiny_config(folder, data=data)), own),
    ("save own", lambda folder: save(folder, state), own),
    ("save common", lambda folder: save(folder, state), common),
    ("restore", restore, common),
    ("restore damaged", restore_damaged, common),
    ("go back", go_back, common),
    ("count bad records", count, common),
):
    if name not in wanted.split(","):
        continue
    try:
        result = task(folder)
        told[name] = result if isinstance(result, list) else None
    except UserError as error:
        told[name] = str(error)
print(json.dumps(told), flush=True)
"""


def on_two_hosts(common: Path | str, own: list[Path], *wanted: str) -> list[dict]:
    """Answers of two processes to each thing that they are to do."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(port), str(index), str(common), str(folder), ",".join(wanted)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, folder in enumerate(own)
    ]
    try:
        said = [host.communicate(timeout=200) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


@pytest.mark.slow
def test_two_processes_agree_on_their_checkpoints(tmp_path):
    common, own = tmp_path / "common", [tmp_path / "one", tmp_path / "two"]
    one, two = on_two_hosts(
        *(common, own, "see common", "train own", "save own", "save common", "restore", "restore damaged"),
        "go back",
        "count bad records",
    )
    # One that both met, one of each; then one more of each.
    assert one["count bad records"] == two["count bad records"] == [3, 5, 5]
    assert one["see common"] is None and two["see common"] is None
    for said in (one, two):
        assert "process 1 does not see what process 0 writes" in said["train own"]
        assert "were not written" in said["save own"] and "one folder that every process sees" in said["save own"]
    assert not [path for folder in own for path in folder.rglob("checkpoint_2*")]

    assert one["save common"] is None and two["save common"] is None
    written = json.loads((common / "checkpoints" / "checkpoint_2.damaged" / "digests.json").read_text())
    # The first alone hashes; both have what they wrote.
    assert one["restore"] == [True, len(written)] and two["restore"] == [True, 0]
    assert "config.gin (changed)" in one["restore damaged"] and one["restore damaged"] == two["restore damaged"]
    step, position, equal, origin = one["go back"]
    assert (step, position, equal) == (1, {"step": 1}, True) and one["go back"] == two["go back"]
    assert "config.gin (changed); kept as checkpoint_2.damaged; goes on from its own checkpoint of step 1" in origin
    assert folders.saved_steps(common) == [1]


@pytest.mark.slow
@pytest.mark.parametrize("cloud", ["gs", "s3"])
def test_two_processes_send_their_parts_to_one_bucket(cloud, request, tmp_path):
    server, common = request.getfixturevalue({"gs": "bucket", "s3": "s3_bucket"}[cloud]), f"{cloud}://bucket-a/run"
    wanted = ("see common", "save common", "restore", "restore damaged", "go back")
    one, two = on_two_hosts(common, [tmp_path, tmp_path], *wanted)
    for said in (one, two):
        assert said["see common"] is None and said["save common"] is None
        assert said["restore"][0] is True
        assert "config.gin (changed)" in said["restore damaged"]
        assert said["go back"][0] == 1 and said["go back"] == one["go back"]
    folder = "run/checkpoints/checkpoint_2/"
    written = json.loads(server.content(f"{folder}digests.json.damaged"))
    for number in (0, 1):
        assert any(f"params/ocdbt.process_{number}/d/" in name for name in written)
    # What the processes told each other is what lies there.
    there = {name.removeprefix(folder): server.content(name) for name in server.names() if name.startswith(folder)}
    del there["digests.json.damaged"], there["config.gin"], written["config.gin"]
    assert {name: hashlib.sha256(content).hexdigest() for name, content in there.items()} == written
    assert list(tmp_path.iterdir()) == []
