"""Extractors and metrics beside torch-fidelity, clean-fid and transformers, on random weights and images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagen_jax.evals import load_extractor, metrics
from imagen_jax.evals.features.resize import clean_bicubic, tf1_bilinear, torch_bilinear
from imagen_jax.evals.features.torch_file import read_torch_file
from imagen_jax.evals.protocols import PROTOCOLS
from tests.parity.torchvision_stand_in import torchvision_stand_in

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def torch_fidelity() -> Any:
    """torch-fidelity, whose package asks for torchvision."""
    with torchvision_stand_in():
        return pytest.importorskip("torch_fidelity")


def photo(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth random image, with some grain."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + rng.integers(-9, 10, smooth.shape)).clip(0, 255).astype(np.uint8)


def shaken(model: Any) -> Any:
    """Fresh norms are all ones and fresh biases zero, which would hide a mistake."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


TINY = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_clip_and_its_images_equal_transformers(tmp_path: Path, act: str) -> None:
    """Images of two shapes, through transformers' processor and through ours, to the score."""
    text = TINY | {"vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 98, "hidden_act": act}
    vision = TINY | {"image_size": 56, "patch_size": 14, "hidden_act": act}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    model = shaken(transformers.CLIPModel(config))
    model.save_pretrained(tmp_path)
    processor_class = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor = processor_class(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor.save_pretrained(tmp_path)
    ours = load_extractor(tmp_path, batch_size=2)
    ids = np.random.default_rng(0).integers(1, 98, (2, 9))
    ids[:, 6:] = 98
    for shape in ((120, 77), (40, 65)):
        images = np.stack([photo(seed, *shape) for seed in range(2)])
        pixels = processor([Image.fromarray(one) for one in images], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            made = model(input_ids=torch.tensor(ids), pixel_values=pixels)
        cosines = (made.image_embeds * made.text_embeds).sum(-1).numpy()
        assert np.abs(ours.score(images, ids) - 100 * np.maximum(cosines, 0)).max() <= 1e-4
        np.testing.assert_allclose(ours.image_features(images), made.image_embeds.numpy(), atol=2e-6)


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("trained_size", [70, 42])
def test_dinov2_equals_transformers(tmp_path: Path, registers: int, trained_size: int) -> None:
    """Positions of the images' own size and of another, with a processor's own resize and crop."""
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes = {key: value for key, value in TINY.items() if key != "intermediate_size"}
    more = {"num_register_tokens": registers} if registers else {}
    config_class = getattr(transformers, f"{name}Config")
    model = getattr(transformers, f"{name}Model")(
        config_class(**sizes, image_size=trained_size, patch_size=14, mlp_ratio=3, **more)
    )
    shaken(model).save_pretrained(tmp_path)
    processor_class = getattr(transformers, "BitImageProcessorPil", None) or transformers.BitImageProcessor
    processor = processor_class(
        size={"shortest_edge": 50},
        crop_size={"height": 42, "width": 42},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    processor.save_pretrained(tmp_path)
    images = np.stack([photo(seed, 61, 90) for seed in range(2)])
    pixels = processor([Image.fromarray(one) for one in images], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.double()(pixels.double()).pooler_output.numpy()
    got = load_extractor(tmp_path, batch_size=2).features(images)["cls"]
    assert np.abs(got - expected).max() <= 2e-5


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save_are_read(tmp_path: Path, zipped: bool) -> None:
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()
    state["transposed"] = torch.arange(6.0).reshape(2, 3).T
    state["half"] = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_torch_file("a.pth", (tmp_path / "a.pth").read_bytes())
    assert found.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found[name].astype(np.float64), value.detach().double().numpy())
    torch.save(torch.nn.Linear(2, 3), tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="only tensors are read"):
        read_torch_file("whole.pth", (tmp_path / "whole.pth").read_bytes())


def test_resizes_equal_their_libraries() -> None:
    images = np.stack([photo(seed, 70, 97) for seed in range(2)])
    tensor = torch.tensor(images).permute(0, 3, 1, 2).float()
    theirs = torch.nn.functional.interpolate(tensor, size=(299, 299), mode="bilinear", align_corners=False)
    got = np.asarray(torch_bilinear(images, 299)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, theirs.numpy(), atol=2e-3)
    small = torch.nn.functional.interpolate(tensor, size=(31, 31), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(np.asarray(torch_bilinear(images, 31)).transpose(0, 3, 1, 2), small.numpy(), atol=2e-3)


def test_the_clean_resize_equals_clean_fid() -> None:
    resize = pytest.importorskip("cleanfid.resize")
    theirs = resize.make_resizer("PIL", False, "bicubic", (299, 299))
    for shape in ((400, 310), (64, 64)):
        image = photo(0, *shape)
        np.testing.assert_array_equal(clean_bicubic(image, 299), theirs(image))


def test_the_tensorflow_resize_equals_torch_fidelity(torch_fidelity: Any) -> None:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    for shape in ((70, 97), (400, 310)):
        image = photo(0, *shape)[None]
        tensor = torch.tensor(image).permute(0, 3, 1, 2).float()
        theirs = interpolate_bilinear_2d_like_tensorflow1x(tensor, size=(299, 299), align_corners=False)
        got = np.asarray(tf1_bilinear(image, 299)).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(got, theirs.numpy(), atol=1e-4)


def test_metrics_equal_torch_fidelity(torch_fidelity: Any) -> None:
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    rng = np.random.default_rng(0)
    a, b = rng.gamma(0.5, size=(260, 40)), rng.gamma(0.6, size=(300, 40))
    statistics = [metric_fid.fid_features_to_statistics(torch.tensor(one)) for one in (a, b)]
    fid = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert metrics.frechet_distance(a, b) == pytest.approx(fid, rel=1e-6)
    settings = {"kid_subsets": 7, "kid_subset_size": 90, "verbose": False}
    kid = metric_kid.kid_features_to_metric(torch.tensor(a), torch.tensor(b), **settings)
    got = metrics.kernel_distance(a, b, num_subsets=7, subset_size=90)
    assert got == pytest.approx(tuple(kid.values()), rel=1e-6)
    score = metric_isc.isc_features_to_metric(torch.tensor(a))
    assert metrics.inception_score(a) == pytest.approx(tuple(score.values()), rel=1e-6)
    manifold = metric_prc.prc_features_to_metric(torch.tensor(a), torch.tensor(b), verbose=False)
    assert metrics.precision_recall(a, b) == pytest.approx((manifold["precision"], manifold["recall"]))


def library_pixels(name: str, image: np.ndarray) -> np.ndarray:
    """An image at 299 x 299 as the library makes it, as Inception's graph of 2015 sees it: (x - 128) / 128."""
    tensor = torch.tensor(image).permute(2, 0, 1)[None].float()
    if name == "clean":
        from cleanfid.resize import make_resizer

        return (make_resizer("PIL", False, "bicubic", (299, 299))(image) - 128) / 128
    if name == "tf1":
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        made = (interpolate_bilinear_2d_like_tensorflow1x(tensor, size=(299, 299), align_corners=False) - 128) / 128
    else:  # pytorch-fid's InceptionV3.forward.
        made = torch.nn.functional.interpolate(tensor / 255, size=(299, 299), mode="bilinear", align_corners=False)
        made = 2 * made - 1
    return made[0].permute(1, 2, 0).numpy()


def coarse(pixels: np.ndarray) -> np.ndarray:
    """Features that see the resize: means and edges of a grid of cells, times 10."""
    cells = np.abs(np.diff(pixels[:, :294, :294], axis=1, append=0)).reshape(len(pixels), 6, 49, 6, 49, 3).mean((2, 4))
    return 10 * np.concatenate([cells.reshape(len(pixels), -1), pixels.mean((1, 2))], 1)


@pytest.mark.parametrize(
    ("name", "protocol"), [("tf1", "imagen_30k"), ("clean", "clean_fid_30k"), ("pytorch", "pytorch_fid_30k")]
)
def test_a_protocols_path_gives_its_librarys_distance(torch_fidelity: Any, name: str, protocol: str) -> None:
    """The distance of two sets of images, once through our path and once through the library's."""
    if name == "clean":
        pytest.importorskip("cleanfid")
    record, theirs, ours = PROTOCOLS[protocol], [], []
    for first in (0, 40):
        pictures = [photo(seed, 300 + first, 320) for seed in range(first, first + 30)]
        ours.append(coarse((np.stack([record.prepare(one) for one in pictures]) - 128) / 128))
        theirs.append(coarse(np.stack([library_pixels(name, record.at_size(one)) for one in pictures])))
    wanted = metrics.frechet_distance(*theirs)
    assert wanted > 0.1
    assert metrics.frechet_distance(*ours) == pytest.approx(wanted, abs=1e-3)
