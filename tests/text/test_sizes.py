"""The published sizes of T5, mT5 and ByT5 encoders, as configs/text/ states them and the network makes them."""

import math
from pathlib import Path

import pytest

from imagen_jax import gin_config
from imagen_jax.text.encoder import TextConfig
from imagen_jax.text.pretrained import Pretrained, held_dtypes

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
VOCABULARIES = {"t5": 32128, "mt5": 250112, "byt5": 384}


def test_every_file_is_here() -> None:
    stems = {path.stem for path in Path("configs/text").glob("*.gin")}
    assert stems == PUBLISHED.keys() | {"pretrained", "t5_demo"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_the_published_sizes_make(name: str) -> None:
    bindings = ["T5_PATH = '/checkpoints/t5'", "VOCABULARY_PATH = 'bytes'"]
    config = gin_config.load(TextConfig, [f"configs/text/{name}.gin"], bindings)
    assert isinstance(config.encoder, Pretrained) and config.encoder.sizes is not None
    width, layers, heads, head, hidden = PUBLISHED[name]
    matrices = 2 if "v1_0" in name else 3
    layer = 4 * width * heads * head + matrices * width * hidden + 2 * width
    vocabulary = VOCABULARIES[name.split("_")[0]]
    expected = vocabulary * width + layers * layer + 32 * heads + width
    assert sum(math.prod(leaf.shape) for leaf in held_dtypes(config.encoder.sizes).values()) == expected
    if name == "t5_v1_1_xxl":  # "the 4.6B parameters of T5-XXL" (section 2.1) are the encoder without its embeddings.
        assert round((expected - vocabulary * width) / 1e9, 1) == 4.6
