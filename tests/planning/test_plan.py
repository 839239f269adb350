"""The `plan` mode for the devices here, and what people read."""

import dataclasses
import json

import jax
import pytest

from imagen_jax.errors import UserError
from imagen_jax.finetune.lora import LoraConfig
from imagen_jax.planning import plan as plan_module
from imagen_jax.planning.plan import PlanOptions, does_not_fit, plan, run
from imagen_jax.planning.text import plan_text
from imagen_jax.sharding.mesh import MeshConfig
from tests.train.tiny_run import tiny_config

KEYS = {
    "topology",
    "mesh",
    "num_devices",
    "per_device_batch",
    "num_params",
    "optimization_level",
    "fits",
    "peak_hbm_gib",
    "hbm_limit_gib",
    "model_flops",
    "hardware_flops",
    "collective_bytes",
    "largest_collective_bytes",
    "layout_bytes",
    "roofline_mfu",
    "step_time_s",
    "days",
    "compile_s",
}
# Of tiny_run.TinyNet: convolutions 3x3x3x16 and 3x3x16x3, a matmul of 17x16, and their biases.
NUM_PARAMS = 27 * 16 + 16 + 144 * 3 + 3 + 17 * 16 + 16


def tiny_flops(rows: int) -> int:
    """FLOPs of one update of TinyNet; images and text need no gradient, the hidden layer does."""
    first, second, dense = 2 * 64 * 27 * 16, 2 * 64 * 144 * 3, 2 * 17 * 16
    return rows * (2 * first + 3 * second + 2 * dense)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    config = tiny_config(tmp_path_factory.mktemp("run"), mesh=MeshConfig(fsdp=4), accumulate_steps=2)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    run(config, PlanOptions(global_batch_size=32, sampler=True), str(path))
    return json.loads(path.read_text())


def test_the_plan_holds_what_a_run_would_take(local):
    assert local.keys() >= KEYS
    assert local["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1, "spatial": 1} and local["num_devices"] == 8
    assert (local["batch_size"], local["per_device_batch"], local["accumulate_steps"]) == (32, 2, 2)
    assert local["num_params"] == NUM_PARAMS
    assert local["model_flops"] == tiny_flops(32)
    assert local["optimization_level"] == "O1" and local["compile_s"] > 0


def test_the_compiled_step_does_the_models_work(local):
    """No remat here: what is compiled is what the model needs, or more where devices repeat each other's work."""
    assert local["model_flops"] <= local["hardware_flops"] < 1.5 * local["model_flops"]


def test_gradients_are_reduced_over_data(local):
    """Each device's share of the kernels' gradients crosses the data axis at least once a step."""
    crossing = sum(size for axes in local["collective_bytes"].values() for axis, size in axes.items() if "data" in axis)
    assert crossing >= 4 * (27 * 16 + 144 * 3 + 17 * 16) / 4


def test_a_cpu_has_memory_but_no_times(local):
    assert local["fits"] and local["peak_hbm_gib"] > 0 and local["hbm_limit_gib"] is None
    assert local["roofline_mfu"] is local["step_time_s"] is local["days"] is None


def test_the_sampler_is_planned_too(local):
    sampler = local["sampler"]
    rows, steps = 16, 64
    once = 2 * 64 * 27 * 16 + 2 * 64 * 144 * 3 + 2 * 17 * 16
    assert (sampler["images"], sampler["steps"]) == (rows, steps)
    assert sampler["model_flops"] == steps * 2 * rows * once  # Conditional and null, every step.


class OutOfMemory:
    """A program that the TPU compiler refuses, in its own words."""

    def __init__(self, message):
        self.message = message

    def __call__(self, *_):
        raise jax.errors.JaxRuntimeError(self.message)


REFUSALS = [
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (17.50G) exceeds available HBM (15.75G). HLO module: jit_step.",
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded hbm "
    "capacity by 1.75G.",
]


@pytest.mark.parametrize("message", REFUSALS)
def test_a_plan_that_does_not_fit_is_told_and_written(tmp_path, monkeypatch, capsys, message):
    monkeypatch.setattr(plan_module.TrainSetup, "compile", OutOfMemory(message))
    path = tmp_path / "plan.json"
    with pytest.raises(UserError, match=r"needs 17\.50 GiB, 15\.75 GiB are allowed") as error:
        run(tiny_config(tmp_path, batch_size=32), PlanOptions(), str(path))
    assert "per-device batch 4" in str(error.value) and "accumulate_steps=2" in str(error.value)
    assert "fsdp=2" in str(error.value)
    found = json.loads(path.read_text())
    assert found.keys() >= KEYS and not found["fits"] and found["peak_hbm_gib"] == 17.5
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_other_failures_of_the_compiler_are_no_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module.TrainSetup, "compile", OutOfMemory("INTERNAL: a defect"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="a defect"):
        plan(tiny_config(tmp_path), PlanOptions())


def test_a_state_that_fills_the_memory_is_to_be_sharded():
    found = {
        "stage": "base",
        "topology": "v5e-8",
        "mesh": {"data": 8, "fsdp": 1, "tensor": 1, "spatial": 1},
        "per_device_batch": 1,
    }
    found |= {"state_gib": 12.0, "hbm_limit_gib": 15.75, "peak_hbm_gib": 20.0, "accumulate_steps": 1}
    text = does_not_fit(found)
    assert "the state alone takes 12.00 GiB" in text and "fsdp=2" in text and "accumulate_steps" not in text


@pytest.mark.parametrize(
    ("changes", "options", "expected"),
    [
        ({"mesh": MeshConfig(fsdp=3)}, {}, "does not fit 8 devices"),
        ({"mesh": MeshConfig(data=2)}, {}, "uses 2 of 8 devices"),
        ({}, {"global_batch_size": 12}, r"batch_size \(12\) must be divisible by 8.*choose 8 or 16"),
        ({}, {"topology": "v4-9"}, "choose one of local, v4-8"),
    ],
)
def test_what_does_not_divide_is_told_with_the_fix(tmp_path, changes, options, expected):
    with pytest.raises(UserError, match=expected):
        plan(tiny_config(tmp_path, **changes), PlanOptions(**options))


def test_an_unknown_level_is_told():
    with pytest.raises(UserError, match="O0, O1, O2, O3, default"):
        PlanOptions(optimization_level="fast")


def test_the_compilers_level_is_put_back(local):
    assert jax.config.values["jax_optimization_level"] == "UNKNOWN"


def test_a_program_that_cannot_be_printed_keeps_its_memory(tmp_path, monkeypatch):
    def no_text(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure async-update\nmore")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", no_text)
    found = plan(tiny_config(tmp_path), PlanOptions())
    assert found["fits"] and found["peak_hbm_gib"] > 0 and found["model_flops"] == tiny_flops(16)
    assert found["hardware_flops"] is None and found["unreadable"] == "INTERNAL: RET_CHECK failure async-update"
    assert "cannot print its program" in plan_text(found)


def test_a_plan_of_lora_counts_the_factors_state_and_the_frozen_base(tmp_path):
    whole = tiny_config(tmp_path)
    lora = dataclasses.replace(whole, init_from="not_read", lora=LoraConfig(rank=2, targets=(r"Dense_0\.kernel",)))
    full, found = plan(whole, PlanOptions()), plan(lora, PlanOptions(sampler=True))
    factors, float32 = 17 * 2 + 2 * 16, 4 / 2**30
    assert found["num_params"] == factors and found["frozen_gib"] == pytest.approx(NUM_PARAMS * float32)
    # Parameters, average and Adam's two moments, besides counters.
    assert found["state_gib"] == pytest.approx(4 * factors * float32, abs=20 * float32)
    assert found["state_gib"] < 0.1 * full["state_gib"] and "frozen_gib" not in full
    assert "frozen parameters" in plan_text(found) and "sampler" in found
