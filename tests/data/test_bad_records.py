"""Records that cannot be decoded stop a run by name, or the next ones stand in their places on every start."""

import dataclasses
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import builder
from imagen_jax.data.config import DataConfig
from imagen_jax.data.pipeline import BatchIterator
from imagen_jax.errors import UserError

_COUNT = 11


def _small_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def config(numbered_corpus, numbered_store, monkeypatch):
    """Records 3 (no picture), 4 (of another size) and 10 (no record at all) are bad; `every`: all are."""

    def make(bad_records: str = "skip", every: bool = False) -> DataConfig:
        real = builder.serialized

        def spoilt(one):
            number = int(one.key.removeprefix("example-"))
            if number == 10:
                return b"\xff\xff"
            images = {3: b"broken", 4: _small_png()}
            image = b"broken" if every else images.get(number, one.image)
            return real(dataclasses.replace(one, image=image))

        monkeypatch.setattr(builder, "serialized", spoilt)
        corpus_dir = numbered_corpus(_COUNT, name=f"bad_{bad_records}_{every}")
        monkeypatch.setattr(builder, "serialized", real)
        return DataConfig(
            corpus_dir=corpus_dir, store_dir=numbered_store(_COUNT), image_size=8, max_text_length=3,
            bad_records=bad_records,
        )  # fmt: skip

    return make


def _read(config: DataConfig, count: int, **options) -> tuple[list[int], BatchIterator]:
    """The example of each row, told by its grey level and by its text."""
    iterator = BatchIterator(config, **{"batch_size": 4, "seed": 1, "start_step": 0, **options})
    batches = list(itertools.islice(iterator, count))
    levels = np.concatenate([batch["x0"][:, 0, 0, 0] for batch in batches])
    numbers = np.round((levels + 1) * 127.5).astype(int).tolist()
    assert numbers == np.concatenate([batch["text"][:, 0, 0] for batch in batches]).astype(int).tolist()
    return numbers, iterator


def test_the_next_good_record_stands_in_the_place_of_a_bad_one(config, numbered_corpus, numbered_store, capsys):
    good = DataConfig(
        corpus_dir=numbered_corpus(_COUNT),
        store_dir=numbered_store(_COUNT, name="good"),
        image_size=8,
        max_text_length=3,
    )
    expected = [{3: 5, 4: 5, 10: 0}.get(number, number) for number in _read(good, 7)[0]]
    spoilt = config()
    numbers, iterator = _read(spoilt, 7)
    assert numbers == expected and iterator.bad_records == {(0, 3), (0, 4), (0, 10)}
    told = capsys.readouterr().err
    assert (
        "record 0 of shard" in told and "train-00001-of-00004.array_record (split 'train', key 'example-003')" in told
    )
    assert "key unreadable" in told and told.count("stands in its place") == 3
    # A start in the middle, and a host that reads some rows only.
    assert _read(spoilt, 3, start_step=4)[0] == expected[16:]
    assert _read(spoilt, 7, rows=[1, 2])[0] == [expected[4 * step + row] for step in range(7) for row in (1, 2)]


def test_by_default_the_run_stops_and_names_the_record(config):
    with pytest.raises(
        UserError, match=r"record [0-2] of shard .*array_record .split 'train', key .* cannot be decoded"
    ):
        _read(config("stop"), 7)


def test_a_split_without_any_good_record_is_refused(config):
    with pytest.raises(UserError, match="neither can any other of the split"):
        _read(config(every=True), 7)


def test_unknown_policies_are_refused():
    with pytest.raises(UserError, match="bad_records is 'drop'; choose one of stop, skip"):
        DataConfig(corpus_dir="c", image_size=8, max_text_length=3, bad_records="drop")
    with pytest.raises(UserError, match="is for corpora"):
        DataConfig(task="t", image_size=8, max_text_length=3, bad_records="skip")
