"""What a run is built from: the embedding store's fingerprint is compared before anything is written."""

import pytest

from imagen_jax.errors import UserError
from imagen_jax.text.store.reader import EmbeddingStore
from imagen_jax.train import loop, setup
from tests.train import tiny_run
from tests.train.tiny_run import LetterEncoder


def test_store_of_another_encoder_is_refused_before_training(tmp_path, monkeypatch):
    store = object.__new__(EmbeddingStore)
    store._directory = "store"
    monkeypatch.setattr(setup, "TextEncoder", lambda config: LetterEncoder())
    monkeypatch.setattr(EmbeddingStore, "open", classmethod(lambda cls, directory: store))
    store.fingerprint = {"encoder": "ours", "dtype": "bfloat16"}
    assert isinstance(loop.check_text(tiny_run.tiny_config(tmp_path)), LetterEncoder)
    store.fingerprint = {"encoder": "theirs", "dtype": "bfloat16"}
    with pytest.raises(UserError, match="(?s)store.*encoder.*theirs"):
        loop.train(tiny_run.tiny_config(tmp_path))
    assert not any(tmp_path.iterdir())
