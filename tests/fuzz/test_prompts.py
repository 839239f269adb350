"""Prompts, on the command line and in files, up to their token ids."""

import argparse
import random
from typing import Any

from imagen_jax.commands.sample import captions_of
from imagen_jax.sampling.request import Request
from imagen_jax.text.cleaning import clean_caption
from imagen_jax.text.tokenizer import BYTES, Tokenizer, train_sentencepiece
from tests.fuzz.mutate import damaged, odd_text
from tests.fuzz.running import fuzz

_WORDS = "a red cube\nzwei blaue Kugeln, é\n\n  漢字  \n"


def test_prompts_files(pytestconfig, tmp_path):
    path = tmp_path / "prompts.txt"
    train_sentencepiece(_WORDS.splitlines(), str(tmp_path / "v.model"), 60)
    tokenizers = [Tokenizer(BYTES), Tokenizer(str(tmp_path / "v.model"))]

    def make(chance: random.Random) -> bytes:
        content = _WORDS.encode(chance.choice(("utf-8", "utf-8-sig", "utf-16")))
        if chance.random() < 0.5:
            content = damaged(chance, content, ["é".encode("latin-1"), b"\xed\xa0\x80", b"\r", b"\0"])
        else:
            content += odd_text(chance).encode(errors="surrogatepass")
        path.write_bytes(content)
        return content

    def attempt(content: bytes) -> None:
        captions = captions_of(argparse.Namespace(captions=[], prompts_file=str(path)))
        Request(prompts=captions)
        for texts in (captions, [clean_caption(one) for one in captions]):
            for tokenizer in tokenizers:
                ids = tokenizer.encode(texts)
                assert all(0 <= one < tokenizer.vocab_size for row in ids for one in row)

    fuzz(pytestconfig, "prompts", make, attempt)


def test_requests(pytestconfig):
    """From Python: texts, seeds and sizes."""
    numbers = (0, -1, 2**32 - 1, 2**32, 10**30)

    def make(chance: random.Random) -> dict[str, Any]:
        texts = [[odd_text(chance) for _ in range(chance.randrange(3))] for _ in range(2)]
        seeds: Any = [chance.choice(numbers) for _ in range(chance.randrange(4))]
        size = (chance.choice(numbers), 8)
        negative = chance.choice((None, texts[1]))
        return {"prompts": texts[0], "negative_prompts": negative, "seed": chance.choice((*seeds, seeds)), "size": size}

    def attempt(fields: dict[str, Any]) -> None:
        request = Request(**fields)
        Tokenizer(BYTES).encode([*request.prompts, *(request.negative_prompts or ())])

    fuzz(pytestconfig, "requests", make, attempt)
