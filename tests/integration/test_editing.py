"""The `sample` command on a tiny cascade: changing images, going on, sizes, and what people get wrong."""

import dataclasses
import json
import logging
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax.checkpoints import folders
from imagen_jax.checkpoints.trained_stage import Weights
from imagen_jax.errors import UserError
from imagen_jax.main import main
from imagen_jax.sampling import drawing
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import from_uint8
from imagen_jax.sampling.loading import check_chain, load_stages
from tests.integration.running import one_error

STEPS = ["--num_steps", "2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and masks."""
    folder = tmp_path_factory.mktemp("images")
    grey = np.linspace(0, 255, 64 * 64).reshape(64, 64)
    colour = np.stack([grey, grey[::-1], np.full_like(grey, 90)], axis=-1).astype(np.uint8)
    Image.fromarray(colour).save(folder / "plain.png")
    # With an alpha channel, as many programs write opaque images.
    Image.fromarray(colour[:37, :51]).convert("RGBA").save(folder / "odd.png")
    Image.fromarray(np.dstack([colour[:37, :51], colour[:37, :51, 0]])).save(folder / "transparent.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[:32]).save(folder / "small_mask.png")
    Image.fromarray(np.zeros_like(mask)).save(folder / "nothing.png")
    Image.fromarray(np.full_like(mask, 255)).save(folder / "everything.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def _sample(root: Path, out: Path, *words: str) -> int:
    return main(["sample", "--checkpoint", str(root), "--output", str(out), *STEPS, *words])


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_an_image_of_odd_size_is_drawn_at_the_nearest_one(root: Path, files: Path, tmp_path: Path, capsys) -> None:
    words = ("--mode", "image_to_image", "--strength", "0.02", "--image", str(files / "odd.png"), "a red cube")
    assert _sample(root, tmp_path / "out", *words) == 0
    # Of 37 x 51 pixels the shorter side becomes the stage's, the longer the nearest that the networks can take.
    assert _pixels(tmp_path / "out" / "00000.png").shape == (64, 88, 3)
    told = capsys.readouterr().out
    assert "odd.png is 37x51 and is drawn as 64x88" in told and "transparent" not in told
    assert Image.open(tmp_path / "out" / "00000.png").text["mode"] == "image_to_image"  # type: ignore[attr-defined]


def test_transparency_is_told(root: Path, files: Path, tmp_path: Path, capsys) -> None:
    words = ("--mode", "image_to_image", "--strength", "0.02", "--image", str(files / "transparent.png"), "a red cube")
    assert _sample(root, tmp_path / "out", *words) == 0
    assert "transparent.png is partly transparent and is put on white" in capsys.readouterr().out


def test_an_image_whose_exif_is_broken_is_drawn_from_as_it_lies(root: Path, tmp_path: Path, capsys) -> None:
    # Two entries: turned, and a resolution that is text where a fraction belongs.
    content = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    content += struct.pack("<HHII", 0x011A, 2, 7, 38) + b"\0\0\0\0" + b"72 dpi\0"
    Image.new("RGB", (64, 96)).save(tmp_path / "turned.png", exif=content)
    words = ("--mode", "image_to_image", "--strength", "0.02", "--image", str(tmp_path / "turned.png"), "a red cube")
    assert _sample(root, tmp_path / "out", *words) == 0
    assert _pixels(tmp_path / "out" / "00000.png").shape == (96, 64, 3)
    assert "turned.png: EXIF data are broken" in capsys.readouterr().out


def test_inpainting_leaves_the_rest_as_it_was(root: Path, files: Path, tmp_path: Path) -> None:
    words = ("--mode", "inpaint", "--image", str(files / "plain.png"), "--mask", str(files / "mask.png"), "a red cube")
    assert _sample(root, tmp_path / "out", *words, "--num_resamples", "2", "--jump_length", "1") == 0
    drawn, given = _pixels(tmp_path / "out" / "00000.png"), _pixels(files / "plain.png")
    np.testing.assert_array_equal(drawn[:, :32], given[:, :32])
    assert abs(drawn[:, 32:] - given[:, 32:]).mean() > 5


@pytest.mark.slow
def test_outpainting_and_enlarging_and_varying_have_the_sizes_they_should(
    root: Path, files: Path, tmp_path: Path
) -> None:
    plain = ("--image", str(files / "plain.png"), "a red cube")
    assert _sample(root, tmp_path / "wider", "--mode", "outpaint", "--border", "0,16,0,32", *plain) == 0
    drawn = _pixels(tmp_path / "wider" / "00000.png")
    assert drawn.shape == (80, 96, 3)
    np.testing.assert_array_equal(drawn[:64, :64], _pixels(files / "plain.png"))
    assert _sample(root, tmp_path / "large", "--mode", "upscale", *plain) == 0
    assert _pixels(tmp_path / "large" / "00000.png").shape == (256, 256, 3)
    assert not (tmp_path / "large" / "00000_base.png").exists()
    assert _sample(root, tmp_path / "varied", "--mode", "vary", "--seed", "1,2", *plain, "a red cube") == 0
    both = [_pixels(tmp_path / "varied" / f"0000{i}.png") for i in (0, 1)]
    assert both[0].shape == (64, 64, 3) and abs(both[0] - both[1]).max() > 0
    each = ("--num_steps", "3,1", "--guidance_weight", "1.5,4", "--aug_level", "0.25")
    assert _sample(root, tmp_path / "text", "--size", "32x80", "--sampler", "dpm++", *each, "a red cube") == 0
    said = Image.open(tmp_path / "text" / "00000.png").text  # type: ignore[attr-defined]
    assert [said[name] for name in ("num_steps", "guidance_weight", "aug_level")] == [
        "[3, 1]",
        "[1.5, 4.0]",
        "[0.0, 0.25]",
    ]
    assert _pixels(tmp_path / "text" / "00000.png").shape == (32, 80, 3)
    assert _pixels(tmp_path / "text" / "00000_base.png").shape == (8, 20, 3)


def test_a_list_goes_on_where_it_stopped(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a red cube {i}\n" for i in range(7)))
    words = ("--prompts_file", str(prompts), "--batch_size", "2")
    drawn: list[int] = []
    whole = drawing.draw_all

    def stops_at_the_third(*args, **options):
        drawn.append(1)
        if len(drawn) == 3:
            raise OSError("no space left")
        return whole(*args, **options)

    monkeypatch.setattr("imagen_jax.sampling.cascade.draw_all", stops_at_the_third)
    assert _sample(root, tmp_path / "out", *words) == 2
    assert len(list((tmp_path / "out").glob("*[0-9].png"))) == 4
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    capsys.readouterr()
    assert _sample(root, tmp_path / "out", *words) == 0
    assert "4 of 7 images are there already" in capsys.readouterr().out
    assert len(drawn) == 3 + 2 and all(path.read_bytes() == data for path, data in before.items())
    # The same list drawn in one go gives the same images.
    assert _sample(root, tmp_path / "again", *words) == 0
    for i in range(7):
        name = f"{i:05d}.png"
        assert abs(_pixels(tmp_path / "out" / name) - _pixels(tmp_path / "again" / name)).max() <= 1
    # Other settings do not mix with what is there, and neither do other checkpoints of the same training.
    for other in (("--seed", "5"), ("--tile_size", "16"), ("--thresholding", "static")):
        assert _sample(root, tmp_path / "out", *words, *other) == 2
        assert "were drawn otherwise" in one_error(capsys)
    later = tmp_path / "later"
    shutil.copytree(root, later)
    folders.checkpoint_dir(later / "sr", folders.latest_step(later / "sr") or 0).rename(
        folders.checkpoint_dir(later / "sr", 999)
    )
    assert _sample(later, tmp_path / "out", *words) == 2
    assert "were drawn otherwise" in one_error(capsys)


@pytest.mark.slow
def test_an_image_that_changed_is_not_taken_for_the_old_one(root: Path, files: Path, tmp_path: Path, capsys) -> None:
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    shutil.copy(files / "plain.png", image)
    shutil.copy(files / "mask.png", mask)
    words = ("--mode", "inpaint", "--num_resamples", "1", "--image", str(image), "--mask", str(mask), "a red cube")
    assert _sample(root, tmp_path / "out", *words) == 0
    assert _sample(root, tmp_path / "out", *words) == 0
    assert "1 of 1 images are there already" in capsys.readouterr().out
    Image.open(mask).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mask)
    assert _sample(root, tmp_path / "out", *words) == 2
    assert "were drawn otherwise" in one_error(capsys)
    assert _sample(root, tmp_path / "out", *words, "--overwrite") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--guidance_weight", "-1"), "guidance_weight (-1.0) must be in [0, 1e+06]"),
        (("--guidance_weight", "inf"), "guidance_weight (inf) must be in [0, 1e+06]"),
        (("--guidance_weight", "1e39"), "guidance_weight (1e+39) must be in"),
        (("--batch_size", "0"), "--batch_size (0) must be an integer >= 1"),
        (("--percentile", "0.995"), "the scale is 0-100"),
        (("--size", "60x64"), "height (60) must be a multiple of 8"),
        (("--mode", "inpaint"), "needs --mask"),
        (("--image", "{plain}"), "--image needs a --mode"),
        (("--mode", "image_to_image"), "needs --image=FILE"),
        (("--mode", "image_to_image", "--image", "{broken}"), "cannot be read"),
        (("--mode", "image_to_image", "--image", "absent.png"), "cannot be read"),
        (("--mode", "image_to_image", "--image", "{plain}", "--strength", "1.5"), "strength (1.5)"),
        (("--mode", "image_to_image", "--image", "{plain}", "--mask", "{mask}"), "--mask does nothing"),
        (("--mode", "inpaint", "--image", "{plain}", "--mask", "{small_mask}"), "is 64x32 pixels, the image 64x64"),
        (("--mode", "inpaint", "--image", "{plain}", "--mask", "{nothing}"), "all zeros"),
        (("--mode", "inpaint", "--image", "{plain}", "--mask", "{everything}"), "all ones"),
        (("--mode", "outpaint", "--image", "{plain}", "--border", "0,0,0,5"), "width (69)"),
        (("--mode", "outpaint", "--image", "{plain}", "--border", "0,0"), "four numbers"),
        (("--mode", "vary", "--image", "{plain}", "--aug_level", "2"), "aug_level (2.0)"),
        (("--tile_overlap", "8"), "needs --tile_size"),
        (("--guidance_weight", "1,2,3"), "3 values for the stages base, sr"),
        (("--aug_level", "0.1,0.2"), "2 values for the stages sr"),
        (("--seed", "-4"), "seed (-4)"),
        (("--seed", "1,2,3"), "3 seeds for 1 images"),
        (("--first_stage", "top"), "no stage 'top'"),
        (("--first_stage", "sr"), "low-resolution images are needed"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    root: Path, files: Path, tmp_path: Path, capsys, words: tuple[str, ...], message: str
) -> None:
    names = {path.stem: str(path) for path in files.iterdir()}
    assert _sample(root, tmp_path / "out", *(word.format(**names) for word in words), "a red cube") == 2
    assert message in one_error(capsys)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.png").exists()


def test_long_captions_are_told(root: Path, tmp_path: Path, capsys) -> None:
    assert _sample(root, tmp_path / "out", "--stage", "base", "a red cube", "a red cube " * 40) == 0
    told = capsys.readouterr().err
    assert "1 of 2 prompts are longer than the 24 tokens" in told and "'a red cube a red cube" in told
    # Only the beginning of it.
    assert "red cube " * 20 not in told and "characters" not in told


def test_lost_parts_of_prompts_are_told(root: Path, tmp_path: Path, capsys) -> None:
    words = ("--stage", "base", "--negative_prompt", "a blue ring " * 40, "a red cube \N{SNOWMAN}", "a red cube")
    assert _sample(root, tmp_path / "out", *words) == 0
    told = capsys.readouterr().err
    assert "2 of 2 negative prompts are longer than the 24 tokens" in told
    assert "1 of 2 prompts hold characters that the vocabulary does not know" in told and "\N{SNOWMAN}" in told


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(root: Path, tmp_path: Path) -> None:
    for name, mark in (("plain", b""), ("marked", b"\xef\xbb\xbf")):
        (tmp_path / name).write_bytes(mark + b"a red cube\r\na blue ring\r\n")
        assert _sample(root, tmp_path / f"{name}_out", "--stage", "base", "--prompts_file", str(tmp_path / name)) == 0
    for number in ("00000.png", "00001.png"):
        with Image.open(tmp_path / "plain_out" / number) as one, Image.open(tmp_path / "marked_out" / number) as other:
            assert one.text == other.text
            np.testing.assert_array_equal(one, other)


def test_pictures_that_are_no_numbers_are_an_error(root: Path) -> None:
    cascade = Cascade.load(str(root))
    host = jax.tree.map(lambda leaf: leaf * np.nan, cascade.stages[0].weights.host)
    stages = (dataclasses.replace(cascade.stages[0], weights=Weights(host, root)), *cascade.stages[1:])
    with pytest.raises(UserError, match=r"stage 'base' drew pictures that are no numbers \(NaN\)"):
        dataclasses.replace(cascade, stages=stages).sample(["a red cube"])


def test_a_folder_may_have_a_dot_in_its_name(root: Path, tmp_path: Path) -> None:
    assert _sample(root, tmp_path / "run.png", "a red cube") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.png", "run.png.png"]
    assert sorted(path.name for path in (tmp_path / "run.png").iterdir()) == ["00000.png", "00000_base.png"]


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_drawn(
    root: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Cascade, "stream", lambda *_, **__: pytest.fail("drawn"))
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        assert _sample(root, out, "a red cube") == 2
        assert "cannot be written" in one_error(capsys)


@pytest.mark.slow
def test_stages_in_turn_draw_what_one_program_does(root: Path) -> None:
    prompts = ["a red cube", "", "a blue ring"]
    whole = Cascade.load(str(root), weights="resident")
    in_turn = dataclasses.replace(whole, weights="offload")
    resident, offloaded = whole.sample(prompts, seed=4), in_turn.sample(prompts, seed=4)
    for one, other in zip(resident, offloaded, strict=True):
        assert abs(one.astype(int) - other).max() <= 1
    assert all(stage.weights._placed is None for stage in in_turn.stages)
    automatic = dataclasses.replace(whole, weights="auto")
    programs = drawing.prepare(automatic.stages, automatic.job("text", prompts)[1])
    bytes_needed = drawing.estimate_bytes(automatic.stages, programs, 8, automatic.mesh)
    for memory_bytes, stays in ((2 * bytes_needed, True), (bytes_needed, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("imagen_jax.cost.memory.device_bytes", lambda value=memory_bytes: value)
            assert automatic._stays(programs, 8) is stays


@pytest.mark.slow
@pytest.mark.eight_devices
def test_eight_devices_draw_what_one_does(root: Path) -> None:
    prompts = ["a red cube", "", "a blue ring"]
    eight = Cascade.load(str(root))
    assert eight.mesh is not None and eight.mesh.shape["data"] == 8
    one = dataclasses.replace(eight, mesh=None)
    for both in zip(eight.sample(prompts, seed=4), one.sample(prompts, seed=4), strict=True):
        assert len(both[0]) == 3 and abs(both[0].astype(int) - both[1]).max() <= 1


def test_prompts_of_the_same_number_compile_nothing_new(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    def compiled(prompt: str, seed: int) -> list[str]:
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            cascade.sample([prompt], seed=seed)
        return [message for message in caplog.messages if "Finished XLA compilation" in message]

    cascade = Cascade.load(str(root))
    # A number of steps that no other test has, so that there is something to compile first.
    cascade = cascade.configure(lambda _, sampling: dataclasses.replace(sampling, num_steps=7))
    assert any("draw_all" in message for message in compiled("a red cube", 1))
    assert compiled("two blue rings", 2) == []


def test_a_gin_file_names_the_stages_and_how_they_are_sampled(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "cascade.gin"
    file.write_text(
        f"""
from __gin__ import dynamic_registration
from imagen_jax.sampling import loading
from imagen_jax.stage import sampling_config
loading.CascadeConfig.stages = (@base/loading.StageSource(), @sr/loading.StageSource())
base/loading.StageSource.model_dir = '{root}/base'
base/loading.StageSource.sampling = @base/sampling_config.SamplingConfig()
base/sampling_config.SamplingConfig.num_steps = 2
base/sampling_config.SamplingConfig.guidance_weight = 1.5
sr/loading.StageSource.model_dir = '{root}/sr'
"""
    )
    cascade = Cascade.load(str(file))
    assert cascade.names == ["base", "sr"] and cascade.stages[0].sampling.num_steps == 2
    assert cascade.stages[1].sampling == load_stages(str(root))[1].sampling
    assert main(["sample", "--checkpoint", str(file), "--output", str(tmp_path / "out"), "a red cube"]) == 0
    assert json.loads(Image.open(tmp_path / "out" / "00000.png").text["guidance_weight"]) == [1.5, 1.0]  # type: ignore[attr-defined]
    file.write_text(file.read_text().replace(f"{root}/sr", f"{root}/none"))
    with pytest.raises(UserError, match="where no checkpoint is"):
        Cascade.load(str(file))


@pytest.mark.slow
def test_heuns_times_are_not_cut_by_the_stages_grid(root: Path, tmp_path: Path) -> None:
    """They are another schedule's; the stage's own sampler is cut."""
    file = tmp_path / "cascade.gin"
    file.write_text(
        f"""
from __gin__ import dynamic_registration
from imagen_jax.diffusion import time_grids
from imagen_jax.sampling import loading
from imagen_jax.stage import sampling_config
loading.CascadeConfig.stages = (@loading.StageSource(),)
loading.StageSource.model_dir = '{root}/base'
loading.StageSource.sampling = @sampling_config.SamplingConfig()
sampling_config.SamplingConfig.times = @time_grids.UniformGrid()
time_grids.UniformGrid.t_last = 0.9
"""
    )
    for sampler, alike in (("heun", True), ("ddim", False)):
        drawn = []
        for checkpoint in (root / "base", file):
            out = tmp_path / f"{sampler}_{len(drawn)}"
            words = ("--sampler", sampler, "--guidance_weight", "1.5", "a red cube")
            assert _sample(checkpoint, out, *words) == 0
            drawn.append(_pixels(out / "00000.png"))
        assert (np.abs(drawn[0] - drawn[1]).max() == 0) == alike


def test_stages_must_form_a_chain(root: Path) -> None:
    base, sr = load_stages(str(root))
    with pytest.raises(UserError, match="takes no images from below"):
        check_chain([sr, base])
    crops = dataclasses.replace(sr, stage=dataclasses.replace(sr.stage, full_size=256))
    with pytest.raises(UserError, match="takes 64-pixel images from below, but stage 'base' draws 16"):
        check_chain([base, crops])
    check_chain([base, sr, crops])


def test_the_methods_take_arrays_and_say_what_they_do_not_take(root: Path, files: Path) -> None:
    cascade = Cascade.load(str(root)).configure(lambda _, s: dataclasses.replace(s, num_steps=2))
    image = from_uint8(np.asarray(Image.open(files / "plain.png")))[None]
    mask = np.zeros((1, 64, 64), bool)
    mask[:, :8] = True
    *_, drawn = cascade.inpaint(["a red cube"], image, mask, num_resamples=1)
    assert drawn.shape == (1, 64, 64, 3) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[0, 8:], np.asarray(Image.open(files / "plain.png"))[8:])
    with pytest.raises(UserError, match="does not take masks"):
        cascade.job("image_to_image", ["a red cube"], image, masks=mask)
    with pytest.raises(UserError, match="needs border"):
        cascade.job("outpaint", ["a red cube"], image)
    with pytest.raises(UserError, match="mode \\('paint'\\) must be one of"):
        cascade.job("paint", ["a red cube"])
    with pytest.raises(UserError, match="takes images to work on"):
        cascade.job("vary", ["a red cube"])
    with pytest.raises(UserError, match="no super-resolution stage"):
        cascade.only(last="base").upscale(["a red cube"], image)
    with pytest.raises(UserError, match="comes after"):
        cascade.only(first="sr", last="base")


def test_an_aug_level_beyond_the_training_is_said(root: Path, files: Path, capsys) -> None:
    base, sr = Cascade.load(str(root)).configure(lambda _, s: dataclasses.replace(s, num_steps=1)).stages
    sr = dataclasses.replace(sr, stage=dataclasses.replace(sr.stage, max_aug_level=0.2))
    cascade = dataclasses.replace(Cascade.load(str(root)), stages=(base, sr))
    image = from_uint8(np.asarray(Image.open(files / "plain.png")))[None]
    # 0.3 unless another is asked for.
    for settings, beyond in (({}, True), ({"aug_level": 0.2}, False)):
        cascade.vary(["a red cube"], image, **settings)
        assert ("aug_level (0.3) is above 0.2, the largest that stage 'sr'" in capsys.readouterr().err) == beyond
    low_res = image[:, ::4, ::4]
    cascade.upscale(["a red cube"], low_res, aug_level=0.5)
    assert capsys.readouterr().err.count("aug_level (0.5) is above 0.2") == 1
    # The base stage has no low-resolution image.
    drawing = cascade.configure(lambda _, s: dataclasses.replace(s, aug_level=0.5))
    drawing.only(first="sr").sample(["a red cube"], low_res=low_res)
    assert capsys.readouterr().err.count("is above") == 1
    assert base.stage.untrained_level(1.0) is None
