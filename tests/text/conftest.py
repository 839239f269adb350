"""A small vocabulary and text encoder that the text tests share."""

import pathlib

import pytest

from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.tokenizer import train_sentencepiece

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
RELATIONS = ("above", "below", "left of", "and")


def two_objects() -> list[tuple[str, tuple[int, int, int, int]]]:
    """Every "a COLOUR SHAPE RELATION a COLOUR SHAPE" of two shapes, with the four indices."""
    return [
        (f"a {COLOURS[a]} {SHAPES[b]} {relation} a {COLOURS[c]} {SHAPES[d]}", (a, b, c, d))
        for a in range(len(COLOURS))
        for b in range(len(SHAPES))
        for relation in RELATIONS
        for c in range(len(COLOURS))
        for d in range(len(SHAPES))
        if b != d
    ]


@pytest.fixture(scope="session")
def vocabulary_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: pathlib.Path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.model"
    train_sentencepiece([caption for caption, _ in two_objects()], str(path), 256)
    return str(path)


@pytest.fixture(scope="session")
def text_config(vocabulary_path: str) -> TextConfig:
    encoder = T5Config(vocab_size=256, embed_dim=128, num_heads=8, head_dim=16, num_layers=2, mlp_dim=128)
    return TextConfig(encoder=encoder, vocabulary_path=vocabulary_path, max_length=12, seed=0)


@pytest.fixture(scope="session")
def text_encoder(text_config: TextConfig) -> TextEncoder:
    return TextEncoder(text_config)
