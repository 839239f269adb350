"""A run of LoRA: its factors alone are trained and kept, on a base that stays; as a stage it is both, merged."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from imagen_jax.checkpoints import checkpoints, folders
from imagen_jax.checkpoints.trained_stage import TrainedStage
from imagen_jax.checkpoints.trees import named_leaves
from imagen_jax.errors import UserError
from imagen_jax.export.arrays import parse_metadata
from imagen_jax.export.bundle import export_bundle
from imagen_jax.finetune import lora
from imagen_jax.finetune.lora import LoraConfig
from imagen_jax.finetune.loras import Lora, with_loras
from imagen_jax.finetune.peft import ARRAYS, read_peft, write_peft
from imagen_jax.finetune.source import load_stage
from imagen_jax.planning.dry_run import dry_run
from imagen_jax.sampling.loading import load_stages, with_lora
from imagen_jax.train import loop
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.optimizer import OptimizerConfig
from imagen_jax.train.setup import TrainSetup
from tests.train import tiny_run

LORA = LoraConfig(rank=2, alpha=4.0, targets=(r"Dense.*kernel", r"Conv_1\.kernel"))


def config_of(base: TrainConfig, model_dir: Path, **changes: object) -> TrainConfig:
    optimizer = OptimizerConfig(name="adam", learning_rate=3e-2, warmup_steps=0)
    return tiny_run.tiny_config(
        model_dir, **{"init_from": base.model_dir, "lora": LORA, "optimizer": optimizer, **changes}
    )


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> TrainConfig:
    config = config_of(base, tmp_path_factory.mktemp("lora") / "run")
    loop.train(config)
    return config


def host_of(stage: TrainedStage) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in named_leaves(stage.weights.host).items()}


def test_state_and_checkpoint_hold_the_factors_alone(base, trained):
    state = TrainSetup.build(trained).state
    targets = {"Dense_0.kernel", "Conv_1.kernel"}
    names = {f"{name}.{factor}" for name in targets for factor in (lora.A, lora.B)}
    assert named_leaves(state.params).keys() == named_leaves(state.ema_params).keys() == names
    own = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    moments = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.size > 1]
    assert sum(moments) == 2 * own
    place = folders.existing(trained.model_dir, None)
    for item in checkpoints.ITEMS[:2]:
        assert named_leaves(checkpoints.load_item(place, item)).keys() == names
    told = json.loads((place / "lora.json").read_text())
    assert told["base"]["checkpoint"] == checkpoints.fingerprint(base.model_dir)
    assert told["lora"] == {"rank": 2, "alpha": 4.0, "targets": list(LORA.targets)}
    assert f"parameters:        {own}" in dry_run(trained)
    losses = [line["loss"] for line in tiny_run.lines_of(Path(trained.model_dir))]
    assert losses[-1] < losses[0]


def test_as_a_stage_it_is_the_base_with_its_averaged_factors(base, trained):
    before, after = host_of(load_stage(base.model_dir)), host_of(load_stage(trained.model_dir))
    factors = checkpoints.load_params(trained.model_dir)
    for name, kernel in before.items():
        wanted = kernel
        if name in ("Dense_0.kernel", "Conv_1.kernel"):
            own = factors[name.split(".")[0]]["kernel"]
            wanted = kernel + 2.0 * np.tensordot(np.asarray(own[lora.A]), np.asarray(own[lora.B]), 1)
            assert np.abs(wanted - kernel).max() > 1e-3
        np.testing.assert_allclose(after[name], wanted, atol=1e-6)
        assert after[name].dtype == np.float32
    found = load_stages(trained.model_dir)[0]
    assert host_of(found).keys() == after.keys() and found.checkpoint == checkpoints.fingerprint(trained.model_dir)
    with pytest.raises(UserError, match="is of another model"):
        TrainedStage.of_checkpoint(folders.existing(trained.model_dir, None)).weights.on_devices(trained.stage, None)


def test_a_stopped_run_goes_on_bit_for_bit_on_the_base_it_began_with(base, trained, tmp_path):
    copy = shutil.copytree(base.model_dir, tmp_path / "base")
    config = config_of(base, tmp_path / "run", init_from=str(copy))
    loop.train(config, stop_at=4)
    # The base is trained on meanwhile.
    loop.train(tiny_run.with_changes(base, model_dir=str(copy)), stop_at=8)
    resumed = loop.train(config)
    whole = checkpoints.load_params(trained.model_dir)
    assert tiny_run.leaves_equal(resumed.ema_params, whole)
    with pytest.raises(UserError, match=r"was trained with LoraConfig\(rank=2.*asks for LoraConfig\(rank=3"):
        loop.train(tiny_run.with_changes(config, lora=dataclasses.replace(LORA, rank=3)))
    shutil.rmtree(folders.checkpoint_dir(copy, 6))
    for refused in (lambda: loop.train(config), lambda: load_stage(config.model_dir)):
        with pytest.raises(UserError, match="no checkpoint of step 6"):
            refused()


def test_run_and_base_may_move_together_and_a_bundle_serves_as_base(base, tmp_path):
    shutil.copytree(base.model_dir, tmp_path / "house" / "base")
    bundle = str(tmp_path / "bundle")
    export_bundle([load_stage(base.model_dir)], bundle)
    one = config_of(base, tmp_path / "house" / "one", init_from=str(tmp_path / "house" / "base"))
    other = config_of(base, tmp_path / "other", init_from=bundle)
    states = [loop.train(config, stop_at=2) for config in (one, other)]
    assert tiny_run.leaves_equal(*states)
    (tmp_path / "house").rename(tmp_path / "moved")
    moved, told = load_stage(tmp_path / "moved" / "one"), load_stage(other.model_dir)
    assert tiny_run.leaves_equal(moved.weights.host, told.weights.host)


def test_several_add_up_by_their_weights_and_weight_zero_is_the_base(base, trained, tmp_path):
    second = config_of(base, tmp_path / "second", seed=5, lora=LoraConfig(rank=1, targets=(".*",)))
    loop.train(second, stop_at=4)
    stages = load_stages(base.model_dir)
    paths = [trained.model_dir, second.model_dir]
    (none,) = with_lora(stages, [f"{path}:0" for path in paths])
    assert all(np.array_equal(leaf, host_of(stages[0])[name]) for name, leaf in host_of(none).items())
    (both,) = with_lora(stages, [f"{paths[0]}:0.5", paths[1]])
    alone = [with_lora(stages, [path])[0] for path in paths]
    base_of, first, last = (host_of(one) for one in (stages[0], *alone))
    for name, leaf in host_of(both).items():
        wanted = base_of[name] + 0.5 * (first[name] - base_of[name]) + (last[name] - base_of[name])
        np.testing.assert_allclose(leaf, wanted, atol=1e-6)
    assert both.checkpoint.startswith(stages[0].checkpoint + "+checkpoint_12-") and ":0.5+" in both.checkpoint
    bundle = str(tmp_path / "bundle")
    export_bundle([both], bundle)
    assert tiny_run.leaves_equal(load_stages(bundle)[0].weights.host, both.weights.host)
    with pytest.raises(UserError, match="was trained on checkpoint_6-.* of stage 'base'; the cascade has"):
        with_lora(load_stages(base.model_dir, steps={"run": 4}), paths)
    with pytest.raises(UserError, match="trains all parameters of its stage"):
        with_lora(stages, [base.model_dir])


def test_pefts_form_comes_back_bit_for_bit_and_is_torchs(base, trained, tmp_path):
    from safetensors.numpy import load_file

    one, folder = Lora.of_run(trained.model_dir), tmp_path / "peft"
    write_peft(one, str(folder))
    again = read_peft(str(folder))
    assert tiny_run.leaves_equal(again.factors, one.factors) and again.config == one.config
    told, arrays = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / ARRAYS)
    assert (told["peft_type"], told["r"], told["lora_alpha"]) == ("LORA", 2, 4.0)
    assert told["target_modules"] == ["Conv_1", "Dense_0"]
    dense, conv = ([arrays[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB"] for name in ("Dense_0", "Conv_1"))
    assert [x.shape for x in dense] == [(2, 17), (16, 2)]
    assert [x.shape for x in conv] == [(2, 16, 3, 3), (3, 2, 1, 1)]
    before, after = (host_of(load_stage(path)) for path in (base.model_dir, trained.model_dir))
    # As torch's layers hold them: [out, in] and [out, in, h, w].
    np.testing.assert_allclose(
        after["Dense_0.kernel"].T, before["Dense_0.kernel"].T + 2.0 * dense[1] @ dense[0], atol=1e-6
    )
    product = np.einsum("or,rihw->oihw", conv[1][:, :, 0, 0], conv[0])
    turned = [kernel["Conv_1.kernel"].transpose(3, 2, 0, 1) for kernel in (before, after)]
    np.testing.assert_allclose(turned[1], turned[0] + 2.0 * product, atol=1e-6)
    merged = [with_lora(load_stages(base.model_dir), [str(path)])[0] for path in (folder, trained.model_dir)]
    assert tiny_run.leaves_equal(merged[0].weights.host, merged[1].weights.host)
    with pytest.raises(UserError, match="is there already"):
        write_peft(one, str(folder))
    write_peft(one, str(folder), overwrite=True)


@pytest.mark.parametrize("damage", ["flip", "short", "stranger", "rank", "infinite"])
def test_damaged_files_of_peft_are_told_in_one_line(trained, tmp_path, damage):
    from safetensors.numpy import load_file, save_file

    write_peft(Lora.of_run(trained.model_dir), str(tmp_path))
    path = tmp_path / ARRAYS
    if damage == "flip":
        content = bytearray(path.read_bytes())
        content[9] ^= 0xFF
        path.write_bytes(bytes(content))
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "stranger":
        save_file(load_file(path), path)
    elif damage == "infinite":
        ours = parse_metadata(np.fromfile(path, np.uint8))
        save_file({name: np.full_like(leaf, np.inf) for name, leaf in load_file(path).items()}, path, ours)
    else:
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    with pytest.raises(UserError) as told:
        read_peft(str(tmp_path))
    assert "\n" not in str(told.value)


def test_stacked_layers_stand_one_by_one(tmp_path):
    layout = lora.Layout((3, 4, 5), ("layers", "embed", "mlp"), 1, 1)
    rng = np.random.default_rng(0)
    factors = {
        "res": {
            "dense": {
                "kernel": {
                    lora.A: rng.normal(size=(3, 4, 2)).astype(np.float32),
                    lora.B: rng.normal(size=(3, 2, 5)).astype(np.float32),
                }
            }
        }
    }
    one = Lora(
        path="x",
        config=LoraConfig(rank=2),
        stage="base",
        base="checkpoint_1-a",
        factors=factors,
        word="w",
        layouts={"res.dense.kernel": layout},
    )
    write_peft(one, str(tmp_path))
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert told["target_modules"] == ["res.dense.0", "res.dense.1", "res.dense.2"]
    assert tiny_run.leaves_equal(read_peft(str(tmp_path)).factors, factors)


@pytest.mark.parametrize(
    ("changes", "message"), [({"init_from": None}, "lora needs init_from"), ({"init_ema": False}, "init_ema True")]
)
def test_a_run_of_lora_needs_its_base(base, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        config_of(base, tmp_path, **changes)


def test_a_lora_on_no_stage_of_the_cascade_is_refused(base):
    one = Lora(path="x", config=LORA, stage="sr", base="checkpoint_1-0", factors={}, word="w", layouts={})
    with pytest.raises(UserError, match="was trained on checkpoint_1-0 of stage 'sr'"):
        with_loras(load_stages(base.model_dir), [(one, 1.0)])
