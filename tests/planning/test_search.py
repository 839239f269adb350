"""The search over meshes."""

import dataclasses
import json

import jax
import pytest

from imagen_jax.cost import topologies
from imagen_jax.errors import UserError
from imagen_jax.planning import search as plan_search
from imagen_jax.planning.plan import PlanOptions, run
from imagen_jax.planning.search import search, splits
from imagen_jax.sharding.mesh import MeshConfig
from tests import tiny
from tests.train.tiny_run import text_config, tiny_config


def _of_tiny_unet(tmp_path, **changes):
    data = dataclasses.replace(tiny_config(tmp_path).data, max_text_length=tiny.BASE.max_text_length)
    text = text_config(tiny.BASE.text_embed_dim, tiny.BASE.max_text_length)
    return tiny_config(tmp_path, stage=tiny.BASE, text=text, data=data, **changes)


def test_splits_use_every_device_once():
    meshes = splits(8)
    assert len(meshes) == len(set(meshes)) == 4 + 3 + 2
    assert all(mesh.data * mesh.fsdp * mesh.tensor == 8 for mesh in meshes)
    assert splits(8, num_slices=4) == [
        MeshConfig(data=8, fsdp=1, tensor=1),
        MeshConfig(data=4, fsdp=2, tensor=1),
        MeshConfig(data=4, fsdp=1, tensor=2),
    ]


def fake_plan(limit):
    """A plan whose memory is its rows a device, and whose time grows with fsdp and with microbatches."""

    def plan(config, options):
        ways = config.mesh.data * config.mesh.fsdp
        rows = config.batch_size // ways // config.accumulate_steps
        step_time = float(config.mesh.fsdp * config.accumulate_steps * config.mesh.tensor)
        return {
            "stage": "base",
            "topology": "local",
            "mesh": {"data": config.mesh.data, "fsdp": config.mesh.fsdp, "tensor": config.mesh.tensor, "spatial": 1},
            "accumulate_steps": config.accumulate_steps,
            "per_device_batch": rows,
            "remat": getattr(config.stage.model, "remat", "none"),
            "fits": rows <= limit,
            "peak_hbm_gib": float(rows),
            "hbm_limit_gib": float(limit),
            "state_gib": 0.0,
            "step_time_s": {"overlap": step_time, "no_overlap": 2 * step_time},
            "roofline_mfu": {"overlap": 1.0, "no_overlap": 0.5},
        }

    return plan


def test_the_fastest_that_fits_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_search, "plan", fake_plan(limit=4))
    found = search(tiny_config(tmp_path, batch_size=64), PlanOptions())
    fits = [one["fits"] for one in found]
    assert fits == sorted(fits, reverse=True) and not all(fits)
    times = [one["step_time_s"]["overlap"] for one in found if one["fits"]]
    assert times == sorted(times)
    # Eight rows a device are too many, so that two microbatches are needed.
    assert found[0]["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1, "spatial": 1} and found[0]["accumulate_steps"] == 2


def test_kept_kernels_are_tried_where_there_are_some_to_gather(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_search, "plan", fake_plan(limit=64))
    ours = _of_tiny_unet(tmp_path, batch_size=64)
    for remat, tried in (("none", {"none"}), ("matmuls", {"matmuls", "kernels"})):
        stage = dataclasses.replace(ours.stage, model=dataclasses.replace(ours.stage.model, remat=remat))
        found = search(dataclasses.replace(ours, stage=stage), PlanOptions())
        assert {one["remat"] for one in found if one["mesh"]["fsdp"] > 1} == tried
        assert {one["remat"] for one in found if one["mesh"]["fsdp"] == 1} == {remat}
        assert "kernels" in tried or "kernels" not in plan_search.search_text(found)


def test_a_batch_that_divides_nowhere_is_told(tmp_path):
    with pytest.raises(UserError, match=r"batch_size \(3\) divides over no mesh of 8 devices"):
        search(tiny_config(tmp_path, batch_size=3), PlanOptions())


def test_local_devices_are_searched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan_search, "splits", lambda *_: [MeshConfig(), MeshConfig(data=4, tensor=2)])
    path = tmp_path / "plan.json"
    run(tiny_config(tmp_path), PlanOptions(), str(path), search=True)
    found = json.loads(path.read_text())
    assert len(found["search"]) == 2 and found["mesh"] == found["search"][0]["mesh"]
    work = [one["hardware_flops"] for one in found["search"]]
    assert work == sorted(work)
    assert "tensor" in capsys.readouterr().out


@pytest.mark.slow
def test_every_mesh_of_two_local_devices_compiles(tmp_path, monkeypatch):
    monkeypatch.setattr(topologies, "devices", lambda *_: jax.devices()[:2])
    found = search(_of_tiny_unet(tmp_path), PlanOptions())
    assert {(one["mesh"]["data"], one["mesh"]["fsdp"], one["mesh"]["tensor"]) for one in found} == {
        (2, 1, 1),
        (1, 2, 1),
        (1, 1, 2),
    }
    assert all(one["fits"] and one["hardware_flops"] > 0 for one in found)
