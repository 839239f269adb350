"""CLIP against transformers' own embeddings and scores, on random weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.evals import load_extractor
from imagen_jax.evals.features.clip import CLIPExtractor

GOLDEN = Path(__file__).parents[2] / "golden"
FOLDER = GOLDEN / "e_clip" / "clip"
IO = np.load(FOLDER / "io.npz")


@pytest.fixture(scope="module")
def clip() -> CLIPExtractor:
    return load_extractor(FOLDER, batch_size=2)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The folder, to be changed."""
    shutil.copytree(FOLDER, tmp_path / "clip")
    (tmp_path / "clip").chmod(0o755)
    for path in (tmp_path / "clip").iterdir():
        path.chmod(0o644)
    return tmp_path / "clip"


def test_embeddings_and_scores_equal_transformers(clip):
    images, texts = clip.image_features(IO["images_uint8_nhwc"]), clip.text_features(IO["input_ids"])
    np.testing.assert_allclose(images, IO["image_embeds"], atol=2e-6)
    np.testing.assert_allclose(texts, IO["text_embeds"], atol=2e-6)
    np.testing.assert_allclose(images @ texts.T, IO["cosine"], atol=2e-6)
    got = clip.score(IO["images_uint8_nhwc"], IO["input_ids"][:4])
    np.testing.assert_allclose(got, 100 * np.maximum(np.diag(IO["cosine"]), 0), atol=1e-4)
    assert clip.features(IO["images_uint8_nhwc"]).keys() == {"image_features"}


def test_captions_are_their_token_ids(clip, copy):
    """With a vocabulary: ids around which the special ones stand, cut at the positions there are, lengths mixed."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(GOLDEN / "clip_hf" / name, copy)
    config = json.loads((copy / "config.json").read_text())
    vocabulary = json.loads((copy / "vocab.json").read_text())
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    if end >= config["text_config"]["vocab_size"]:
        # The weights know fewer ids: the highest two stand for the special ones.
        table = {word: number % 254 for word, number in vocabulary.items()}
        table |= {"<|startoftext|>": 254, "<|endoftext|>": 255}
        (copy / "vocab.json").write_text(json.dumps(table))
        start, end = 254, 255
    named = load_extractor(copy, batch_size=2)
    captions = ["a", "a cat and a dog " * 20, ""]
    made = named.text_features(captions)
    tokens = named._vocabulary.encode(captions)
    assert len(tokens[1]) > 20
    for row, one in zip(made, tokens, strict=True):
        ids = np.array([[start, *one[:14], end]])
        np.testing.assert_allclose(clip.text_features(ids)[0], row, atol=1e-6)


def test_images_of_another_size_are_resized_and_cropped(clip):
    """A wide image is its middle, resized by Pillow."""
    from PIL import Image

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(small).resize((100, 64), Image.Resampling.BICUBIC))
    by_hand = np.asarray(Image.fromarray(wide).resize((50, 32), Image.Resampling.BICUBIC))[:, 9:41]
    np.testing.assert_allclose(clip.image_features(wide[None]), clip.image_features(by_hand[None]), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: x.score(IO["images_uint8_nhwc"], ["a"]), "4 images have 1 captions"),
        (lambda x: x.text_features(["a"]), "no vocabulary"),
        (lambda x: x.text_features([]), "at least one"),
        (lambda x: x.text_features(np.full((1, 4), 256)), "[0, 256)"),
        (lambda x: x.text_features(np.zeros((1, 17), np.int32)), "up to 16"),
        (lambda x: x.features(IO["images_uint8_nhwc"], layers=("2048",)), "'2048' is unknown"),
    ],
)
def test_wrong_calls_are_refused(clip, call, said):
    with pytest.raises(UserError) as error:
        call(clip)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_damaged_folders_are_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    weights = (copy / "model.safetensors").read_bytes()
    for change, said in (
        ({"model_type": "siglip"}, "'siglip' model"),
        ({"vision_config": config["vision_config"] | {"num_hidden_layers": 10**6}}, "layers"),
        ({"vision_config": config["vision_config"] | {"hidden_size": 44}}, "differ"),
        ({"vision_config": config["vision_config"] | {"hidden_act": "snake"}}, "not that of a CLIP model"),
        ({"text_config": 3}, "not that of a CLIP model"),
    ):
        (copy / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=said) as error:
            load_extractor(copy)
        assert "\n" not in str(error.value)
    (copy / "config.json").write_text(json.dumps(config))
    for text in ('{"image_std": [1]}', '{"resample": 99}', '{"crop_size": {"height": -1}}', '{"size": []}', "[]", "{"):
        (copy / "preprocessor_config.json").write_text(text)
        with pytest.raises(UserError, match=r"preprocessor_config\.json is damaged"):
            load_extractor(copy)
    (copy / "preprocessor_config.json").unlink()
    (copy / "model.safetensors").write_bytes(weights[:-1000])
    with pytest.raises(UserError, match="damaged"):
        load_extractor(copy)


def test_the_fingerprint_tells_weights_and_configs_apart(clip, copy):
    assert load_extractor(copy).fingerprint == clip.fingerprint
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert load_extractor(copy).fingerprint != clip.fingerprint
