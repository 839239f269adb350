"""The `plan` mode for TPU slices that are not here: libtpu compiles for them."""

import dataclasses
import math

import pytest

from imagen_jax.cost import topologies
from imagen_jax.errors import UserError
from imagen_jax.planning.plan import PlanOptions, plan, run
from imagen_jax.planning.text import plan_text
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.sharding.rules import batch_sharding, rows_of_process
from tests.planning.test_plan import KEYS, tiny_flops
from tests.train.tiny_run import tiny_config


def test_a_tpu_slice(tmp_path):
    config = tiny_config(tmp_path, mesh=MeshConfig(fsdp=4), num_steps=2_500_000)
    found = plan(config, PlanOptions(topology="v5e-8"))
    assert found.keys() >= KEYS and found["num_devices"] == 8 and found["device_kind"] == "TPU v5 lite"
    assert found["fits"] and found["hbm_limit_gib"] == 15.75
    assert found["model_flops"] == tiny_flops(16) <= found["hardware_flops"]
    line, times = found["roofline"], found["step_time_s"]
    assert line["compute_s"] == found["hardware_flops"] / 8 / 197e12
    assert line["hbm_s"] == found["hbm_bytes"] / 819e9
    assert line["ici_s"] == found["ici_bytes_sent"] / 100e9 and line["dcn_s"] == 0
    assert times["overlap"] == max(line[f"{name}_s"] for name in ("compute", "hbm", "ici"))
    assert times["no_overlap"] == pytest.approx(line["compute_s"] + line["hbm_s"] + line["ici_s"])
    assert found["roofline_mfu"]["overlap"] == pytest.approx(tiny_flops(16) / 8 / 197e12 / times["overlap"])
    assert found["days"]["no_overlap"] == pytest.approx(times["no_overlap"] * 2_500_000 / 86400)
    assert "MFU" in plan_text(found)


def test_a_tpu_slice_that_is_too_small(tmp_path):
    model = dataclasses.replace(tiny_config(tmp_path).stage.model, dim=64)
    stage = dataclasses.replace(tiny_config(tmp_path).stage, model=model)
    rows = 8 * 2**22  # Four million images of 8x8x64 floats: 64 GiB for one copy of the hidden layer.
    with pytest.raises(UserError, match=r"15\.75 GiB are allowed; .*accumulate_steps=2"):
        run(tiny_config(tmp_path, stage=stage, batch_size=rows), PlanOptions(topology="v5e-8"))


def test_two_slices_meet_over_the_data_centre_network(tmp_path):
    config = tiny_config(tmp_path, mesh=MeshConfig(fsdp=4))
    found = plan(config, PlanOptions(topology="v5e-4", num_slices=2))
    assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1, "spatial": 1} and found["num_slices"] == 2
    # Every device sends its share of all gradients once: two slices, an all-reduce of what fsdp left to each.
    assert found["dcn_bytes_sent"] >= 4 * (27 * 16 + 144 * 3 + 17 * 16) / 4
    assert math.isclose(found["roofline"]["dcn_s"], found["dcn_bytes_sent"] / 3.125e9)
    with pytest.raises(UserError, match="must be divisible by the 2 slices"):
        plan(tiny_config(tmp_path, mesh=MeshConfig(fsdp=8)), PlanOptions(topology="v5e-4", num_slices=2))


@pytest.mark.parametrize("name", [name for name in topologies.known_topologies() if name != topologies.LOCAL])
def test_groups_of_eight_fit_every_slice(name):
    """Whatever its torus: 8 chips along fsdp are no side of 4 x 4 x 4."""
    devices = topologies.devices(name)
    if len(devices) % 8 == 0:
        mesh = MeshConfig(fsdp=8).build(devices)
        assert mesh.shape["fsdp"] == 8 and len({device.id for device in mesh.devices.flat}) == len(devices)


@pytest.mark.parametrize("name", ["v4-64", "v4-512", "v5e-16", "v5e-256"])
def test_hosts_of_a_slice_read_the_rows_of_their_chips(name):
    """With tensor 4 the torus lays a row over chips of several hosts: each of them reads it, and no row is left out."""
    devices = topologies.devices(name)
    mesh = MeshConfig(tensor=4).build(devices)
    batch_size = len(devices) // 2
    placed = batch_sharding(mesh).devices_indices_map((batch_size,))
    for process in {device.process_index for device in devices}:
        rows = rows_of_process(placed, batch_size, process).tolist()
        held = [row for (row, *_), chips in _rows(mesh, batch_size) if any(c.process_index == process for c in chips)]
        assert rows == sorted(row for start in held for row in (start, start + 1))


def _rows(mesh, batch_size):
    """First row of each group of mesh neighbours that share rows, and their chips: by the mesh alone."""
    groups = mesh.devices.reshape(-1, mesh.shape["tensor"])
    each = batch_size // len(groups)
    return [(range(number * each, (number + 1) * each), list(chips)) for number, chips in enumerate(groups)]
