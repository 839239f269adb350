"""The published sizes of the encoders, as configs/text/ states them and the networks make them."""

import math
from pathlib import Path

import pytest

from imagen_jax import gin_config
from imagen_jax.errors import UserError
from imagen_jax.text.encoder import TextConfig
from imagen_jax.text.encoders.config import EncoderConfig
from imagen_jax.text.weights.pretrained import Pretrained, held_dtypes

# width, layers, heads, width of a head, hidden width of the feed-forward block: tables of arXiv 1910.10683 (T5),
# 2010.11934 (mT5) and 2105.13626 (ByT5), and the T5 1.1 release notes.
PUBLISHED = {
    "t5_v1_0_small": (512, 6, 8, 64, 2048),
    "t5_v1_0_base": (768, 12, 12, 64, 3072),
    "t5_v1_0_large": (1024, 24, 16, 64, 4096),
    "t5_v1_0_3b": (1024, 24, 32, 128, 16384),
    "t5_v1_0_11b": (1024, 24, 128, 128, 65536),
    "t5_v1_1_small": (512, 8, 6, 64, 1024),
    "t5_v1_1_base": (768, 12, 12, 64, 2048),
    "t5_v1_1_large": (1024, 24, 16, 64, 2816),
    "t5_v1_1_xl": (2048, 24, 32, 64, 5120),
    "t5_v1_1_xxl": (4096, 24, 64, 64, 10240),
    "mt5_small": (512, 8, 6, 64, 1024),
    "mt5_base": (768, 12, 12, 64, 2048),
    "mt5_large": (1024, 24, 16, 64, 2816),
    "mt5_xl": (2048, 24, 32, 64, 5120),
    "mt5_xxl": (4096, 24, 64, 64, 10240),
    "byt5_small": (1472, 12, 6, 64, 3584),
    "byt5_base": (1536, 18, 12, 64, 3968),
    "byt5_large": (1536, 36, 16, 64, 3840),
    "byt5_xl": (2560, 36, 32, 64, 6720),
    "byt5_xxl": (4672, 36, 64, 64, 12352),
}
# Parameters of transformers' CLIPTextModel and BertModel of these names.
WHOLE = {"clip_vit_l14": 123_060_480, "bert_base": 109_482_240, "bert_large": 335_141_888, "minilm": 22_713_216}
VOCABULARIES = {"t5": 32128, "mt5": 250112, "byt5": 384}


def test_every_file_is_here() -> None:
    stems = {path.stem for path in Path("configs/text").glob("*.gin")}
    assert stems == PUBLISHED.keys() | WHOLE.keys() | {"pretrained", "bert", "t5_demo"}


def encoder_sizes(name: str, *bindings: str) -> EncoderConfig:
    config = gin_config.load(TextConfig, [f"configs/text/{name}.gin"], list(bindings))
    assert isinstance(config.encoder, Pretrained) and config.encoder.sizes is not None
    assert config.sizes() == config.encoder.sizes
    return config.encoder.sizes


def num_parameters(sizes: EncoderConfig) -> int:
    return sum(math.prod(leaf.shape) for leaf in held_dtypes(sizes).values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_the_published_sizes_make(name: str) -> None:
    sizes = encoder_sizes(name, "T5_PATH = '/checkpoints/t5'", "VOCABULARY_PATH = 'bytes'")
    width, layers, heads, head, hidden = PUBLISHED[name]
    matrices = 2 if "v1_0" in name else 3
    layer = 4 * width * heads * head + matrices * width * hidden + 2 * width
    vocabulary = VOCABULARIES[name.split("_")[0]]
    expected = vocabulary * width + layers * layer + 32 * heads + width
    assert num_parameters(sizes) == expected
    if name == "t5_v1_1_xxl":  # "the 4.6B parameters of T5-XXL" (section 2.1) are the encoder without its embeddings.
        assert round((expected - vocabulary * width) / 1e9, 1) == 4.6


def test_clip_is_the_published_one_without_its_last_layer_and_norm() -> None:
    sizes = encoder_sizes("clip_vit_l14", "CLIP_PATH = '/checkpoints/clip'")
    last_layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    assert num_parameters(sizes) + last_layer + 2 * 768 == WHOLE["clip_vit_l14"]
    assert (sizes.vocab_size, sizes.max_positions) == (49408, 77)
    with pytest.raises(UserError, match=r"max_length is too long \(78\), but the encoder has positions for 77 tokens"):
        encoder_sizes("clip_vit_l14", "CLIP_PATH = '/checkpoints/clip'", "MAX_TEXT_LENGTH = 78")


@pytest.mark.parametrize(("name", "width"), [("bert_base", 768), ("bert_large", 1024), ("minilm", 384)])
def test_bert_is_the_published_one_without_its_pooler(name: str, width: int) -> None:
    sizes = encoder_sizes(name, "BERT_PATH = '/checkpoints/bert'")
    assert num_parameters(sizes) + width * width + width == WHOLE[name]
    assert (sizes.vocab_size, sizes.max_positions) == (30522, 512)
