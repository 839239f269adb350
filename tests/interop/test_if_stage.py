"""IF stages against diffusers' own forwards and trajectories (tests/golden/c_if_*), and against damaged folders."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.errors import UserError
from imagen_jax.interop import load_if_stage, save_if_stage
from imagen_jax.interop.if_config import if_config
from imagen_jax.interop.if_stage import param_shapes

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def nhwc(x):
    return np.moveaxis(x, -3, -1)


@pytest.fixture(scope="module", params=[1, 2])
def golden(request):
    folder = GOLDEN / f"c_if_stage{request.param}"
    return load_if_stage(str(folder)), np.load(folder / "forward.npz"), np.load(folder / "trajectory.npz")


def test_forward_is_diffusers(golden):
    stage, forward, _ = golden
    images = nhwc(forward["sample"])
    extra = () if images.shape[-1] == 3 else (images[..., 3:], forward["noise_level"])
    got = stage.predict(images[..., :3], forward["timestep"], forward["encoder_hidden_states"], *extra)
    np.testing.assert_allclose(got, nhwc(forward["output"]), atol=2e-5, rtol=0)


def test_guided_trajectory_is_diffusers_at_every_step(golden):
    stage, _, run = golden
    more = {}
    if "lowres" in run:
        more = {
            "low_res": nhwc(run["lowres"]),
            "low_res_noise": nhwc(run["lowres_noise"]),
            "noise_level": int(run["noise_level"]),
        }
    noise = nhwc(np.concatenate([run["initial_noise"][None], run["step_noise"]]))
    got = stage.sample(
        run["prompt_embeds"],
        run["negative_prompt_embeds"],
        noise,
        guidance_weight=float(run["guidance_scale"]),
        **more,
    )
    np.testing.assert_allclose(got, nhwc(run["x"]), atol=1e-3, rtol=0)


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN / "c_if_stage1", tmp_path / "stage"))


def edit(folder, **changes):
    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "DROP"}))


def test_all_faults_of_a_config_are_named_at_once(folder):
    edit(folder, act_fn="silu", norm_eps="DROP", novelty=3)
    with pytest.raises(UserError, match=r"norm_eps is missing; novelty is not known; act_fn \('silu'\)"):
        load_if_stage(str(folder))


@pytest.mark.parametrize(
    ("name", "value"), [("norm_eps", float("nan")), ("time_embedding_dim", 10**400), ("layers_per_block", 10**6),
                        ("block_out_channels", [32] * 99), ("conv_in_kernel", 2)],
)  # fmt: skip
def test_sizes_that_no_network_has_are_refused_before_any_work(folder, name, value):
    edit(folder, **{name: value})
    with pytest.raises(UserError, match=rf"{name} \("):
        load_if_stage(str(folder))


def test_all_faults_of_the_tensors_are_named_at_once(folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors["conv_in.bias"]
    tensors |= {"more": np.zeros(2, np.float32), "conv_out.bias": np.zeros(5, np.float32)}
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"conv_in.bias is missing; more is unexpected; conv_out.bias has shape \(5,\)"):
        load_if_stage(str(folder))


def test_infinite_halves_lying_headers_and_pickles_are_refused(folder):
    tensors = {name: array.astype(np.float16) for name, array in load_file(folder / WEIGHTS).items()}
    tensors["conv_in.bias"][0] = np.inf
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"conv_in.bias .*infinities.*float16"):
        load_if_stage(str(folder))
    save_file({**tensors, "conv_in.bias": np.zeros_like(tensors["conv_in.bias"], np.int8)}, folder / WEIGHTS)
    with pytest.raises(UserError, match="conv_in.bias .*stored as int8"):
        load_if_stage(str(folder))
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-64])
    with pytest.raises(UserError, match="is damaged"):
        load_if_stage(str(folder))
    (folder / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="pickled"):
        load_if_stage(str(folder))


def test_shards_load_as_one_file(folder):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {name: f"shard-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / "unet" / file)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))
    bias = load_if_stage(str(folder)).params["conv_in"]["bias"]
    assert jnp.array_equal(bias, tensors["conv_in.bias"])


def test_saving_gives_the_tensors_that_were_read(golden, tmp_path):
    stage = golden[0]
    number = 1 if stage.noising is None else 2
    save_if_stage(stage, str(tmp_path / "one"))
    save_if_stage(stage, str(tmp_path / "many"), max_file_bytes=20_000)
    given = load_file(GOLDEN / f"c_if_stage{number}" / WEIGHTS)
    written = load_file(tmp_path / "one" / WEIGHTS)
    assert given.keys() == written.keys()
    assert all(np.array_equal(given[name], written[name]) for name in given)
    files = list((tmp_path / "many" / "unet").glob("*.safetensors"))
    assert len(files) > 2
    assert set().union(*map(load_file, files)) == given.keys()
    with pytest.raises(UserError, match="is there already"):
        save_if_stage(stage, str(tmp_path / "one"))


def test_a_stage_that_reads_back_otherwise_is_not_there(golden, tmp_path):
    stage = copy.copy(golden[0])
    bias = np.asarray(stage.params["conv_in"]["bias"]).astype(np.float64) + 1e-12
    stage.params = stage.params | {"conv_in": stage.params["conv_in"] | {"bias": bias}}
    with pytest.raises(UserError, match="conv_in.bias"):
        save_if_stage(stage, str(tmp_path / "stage"))
    assert not list(tmp_path.iterdir())


def test_if_i_xl_has_its_published_number_of_parameters():
    given = json.loads((GOLDEN / "c_if_stage1" / "unet" / "config.json").read_text()) | {
        "block_out_channels": [704, 1408, 2112, 2816],
        "layers_per_block": 3,
        "attention_head_dim": 64,
        "addition_embed_type_num_heads": 64,
        "cross_attention_dim": 2816,
        "encoder_hid_dim": 4096,
        "norm_num_groups": 32,
        "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
        "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
    }
    shapes = param_shapes(if_config("config.json", given))
    assert round(sum(map(np.prod, shapes.values())) / 1e6, 1) == 4304.7


def test_loading_needs_no_trainer_and_no_tensorflow():
    code = (
        "import sys, imagen_jax.interop\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'seqio', 'torch') "
        "or m.startswith('imagen_jax.train')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
