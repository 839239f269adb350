"""The batches of the tiny runs."""

import pytest

from tests.train import tiny_run


@pytest.fixture
def tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has runs read the tiny batches, none of them poisoned."""
    tiny_run.use_tiny_data(monkeypatch.setattr)
    monkeypatch.setattr(tiny_run.TinyBatches, "steps_read", [])
    monkeypatch.setattr(tiny_run.TinyBatches, "poison_steps", frozenset())
