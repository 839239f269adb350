"""Batches are a function of (seed, step) alone: any hosts, any restart, the same examples."""

import dataclasses
import hashlib
import io
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import pipeline, tasks
from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.config import DataConfig
from imagen_jax.data.pipeline import BatchIterator
from imagen_jax.data.raw import RawExample
from imagen_jax.errors import UserError
from imagen_jax.image_files import centre_square, decode_image
from imagen_jax.text.store.reader import StoreWriter

NUM_EXAMPLES = 11


@pytest.fixture
def config(numbered_corpus, numbered_store):
    corpus_dir, store_dir = numbered_corpus(NUM_EXAMPLES), numbered_store(NUM_EXAMPLES + 2)

    def make(**changes) -> DataConfig:
        return DataConfig(
            **{
                "corpus_dir": corpus_dir,
                "store_dir": store_dir,
                "image_size": 8,
                "max_text_length": 3,
                **changes,
            }
        )

    return make


def _batches(config: DataConfig, count: int, **options) -> list[dict[str, np.ndarray]]:
    options = {"batch_size": 4, "seed": 1, "start_step": 0, **options}
    return list(itertools.islice(BatchIterator(config, **options), count))


def _numbers(batches: list[dict[str, np.ndarray]]) -> list[int]:
    """Which example each row is, told by its grey level."""
    levels = np.concatenate([batch["x0"][:, 0, 0, 0] for batch in batches])
    return np.round((levels + 1) * 127.5).astype(int).tolist()


def _equal(left: list[dict[str, np.ndarray]], right: list[dict[str, np.ndarray]]) -> bool:
    return all(
        set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(left, right, strict=True)
    )


def test_rows_join_image_text_and_mask_of_the_same_example(config):
    for batch in _batches(config(low_res_size=4), 6):
        assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
            "x0": ((4, 8, 8, 3), "float32"),
            "low_res": ((4, 4, 4, 3), "float32"),
            "text": ((4, 3, 4), "float32"),
            "text_mask": ((4, 3), "bool"),
        }
        for row, number in enumerate(_numbers([batch])):
            np.testing.assert_allclose(batch["x0"][row], number / 127.5 - 1, atol=1e-6)
            np.testing.assert_allclose(batch["low_res"][row], number / 127.5 - 1, atol=1e-6)
            num_tokens = 1 + number % 3
            assert batch["text_mask"][row].tolist() == [i < num_tokens for i in range(3)]
            assert np.array_equal(
                batch["text"][row], np.where(np.arange(3)[:, None] < num_tokens, number, 0) * np.ones(4)
            )


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_text_of_a_rounded_store_stays_bfloat16(config, numbered_store, dtype):
    exact = _batches(config(), 4)
    batches = BatchIterator(
        config(store_dir=numbered_store(NUM_EXAMPLES, "rounded", dtype)), batch_size=4, seed=1, start_step=0
    )
    assert batches.text_dtype.name == "bfloat16"
    for batch, expected in zip(itertools.islice(batches, 4), exact, strict=True):
        assert batch["text"].tobytes() == expected["text"].astype(ml_dtypes.bfloat16).tobytes()
        assert _equal([{**batch, "text": 0}], [{**expected, "text": 0}])


def test_a_base_batch_has_no_low_res(config):
    (batch,) = _batches(config(image_size=4), 1)
    assert set(batch) == {"x0", "text", "text_mask"}
    assert batch["x0"].shape == (4, 4, 4, 3)


def test_each_epoch_is_another_permutation(config):
    numbers = _numbers(_batches(config(), 11))  # 44 examples, 4 epochs
    epochs = [numbers[start : start + NUM_EXAMPLES] for start in range(0, 44, NUM_EXAMPLES)]
    assert all(sorted(epoch) == list(range(NUM_EXAMPLES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert numbers != _numbers(_batches(config(), 11, seed=2))


def test_the_order_does_not_depend_on_the_batch_size(config):
    assert _numbers(_batches(config(), 6)) == _numbers(_batches(config(), 3, batch_size=8))


def test_a_batch_may_hold_several_epochs(config):
    (batch,) = _batches(config(), 1, batch_size=3 * NUM_EXAMPLES)
    numbers = _numbers([batch])
    assert all(numbers.count(number) == 3 for number in range(NUM_EXAMPLES))


def test_one_grey_picture_fills_every_row(tmp_path, source_of, numbered_store):
    picture = RawExample(key="example-000", image=np.full((8, 8), 90, np.uint8), caption="grey", split="train")
    build_corpus(source_of([picture]), tmp_path / "one", BuildConfig(name="one", image_size=8))
    one = DataConfig(corpus_dir=str(tmp_path / "one"), store_dir=numbered_store(1), image_size=8, max_text_length=3)
    for batch in _batches(one, 3, batch_size=5):
        assert batch["x0"].shape == (5, 8, 8, 3)
        np.testing.assert_allclose(batch["x0"], 90 / 127.5 - 1, atol=1e-6)
        assert batch["text_mask"].tolist() == [[True, False, False]] * 5


def test_a_host_reads_its_rows_of_the_global_batch(config):
    whole = _batches(config(crop="random", image_size=4, low_res_size=2), 5)
    size = len(whole[0]["x0"])
    for rows in (range(size // 2), range(1, size, 2), [0, size - 1]):
        host = _batches(config(crop="random", image_size=4, low_res_size=2), 5, rows=rows)
        assert _equal(host, [{name: array[list(rows)] for name, array in batch.items()} for batch in whole])


def test_a_restart_continues_exactly(config):
    options = {"crop": "random", "image_size": 4}
    assert _equal(_batches(config(**options), 4, start_step=5), _batches(config(**options), 9)[5:])


@pytest.mark.slow
def test_a_program_that_leaves_its_batches_behind_ends(config):
    """TensorFlow reads ahead through Python, and such a thread once held up two exits of three."""
    script = (
        "import sys, json\n"
        "from imagen_jax.data.pipeline import BatchIterator, DataConfig\n"
        "batches = BatchIterator(DataConfig(**json.loads(sys.argv[1])), batch_size=4, seed=0, start_step=0)\n"
        "next(batches)\n"
    )
    command = [sys.executable, "-c", script, json.dumps(dataclasses.asdict(config()))]
    assert subprocess.run(command, timeout=60, cwd=Path(__file__).parents[2]).returncode == 0


def test_the_examples_of_a_step_are_those_of_its_batch_on_every_host(config):
    batches = BatchIterator(config(), batch_size=4, seed=1, start_step=0, rows=[1, 2])
    for step, batch in enumerate(_batches(config(), 4)):
        assert batches.examples_of(step) == {"train": _numbers([batch])}


def test_position_is_small_and_names_the_next_step(config):
    manifest = Path(config().corpus_dir, "corpus.json").read_bytes()
    batches = BatchIterator(config(), batch_size=4, seed=1, start_step=7)
    assert batches.position()["step"] == 7
    next(batches)
    next(batches)
    assert batches.position() == {
        "step": 9,
        "seed": 1,
        "batch_size": 4,
        "split": "train",
        "num_examples": NUM_EXAMPLES,
        "corpus": hashlib.sha256(manifest).hexdigest()[:16],
    }
    assert len(json.dumps(batches.position())) < 64 * 1024


def test_another_split(config):
    assert sorted(_numbers(_batches(config(split="val"), 1, batch_size=2))) == [
        NUM_EXAMPLES,
        NUM_EXAMPLES + 1,
    ]


@pytest.fixture
def photo(tmp_path, source_of) -> DataConfig:
    """A corpus of one 32 x 32 picture with every pixel different."""
    pixels = np.stack(np.meshgrid(np.arange(32) * 8, np.arange(32) * 8, [7]), axis=-1)[:, :, 0].astype(np.uint8)
    source = source_of([RawExample(key="photo", image=pixels, caption="c")])
    build_corpus(source, tmp_path / "photo", BuildConfig(name="photo", image_size=32))
    writer = StoreWriter(str(tmp_path / "text"), fingerprint={"dtype": "float32"}, embed_dim=2)
    writer.write_shard(0, [np.ones((1, 2), np.float32)], [b"photo"], [0])
    writer.finish(np.zeros((1, 2), np.float32))
    return DataConfig(
        corpus_dir=str(tmp_path / "photo"), store_dir=str(tmp_path / "text"), image_size=16, low_res_size=4,
        max_text_length=1, crop="random",
    )  # fmt: skip


def test_random_crops_move_between_epochs_and_low_res_follows(photo):
    corners = set()
    for batch in _batches(photo, 8):
        for x0, low_res in zip(batch["x0"], batch["low_res"], strict=True):
            window = np.round((x0 + 1) * 127.5).astype(np.uint8)
            assert np.array_equal(np.diff(window[0, :, 0]), np.full(15, 8))  # a window, not a resize
            corners.add((int(window[0, 0, 0]), int(window[0, 0, 1])))
            expected = Image.fromarray(window).resize((4, 4), Image.Resampling.BILINEAR)
            np.testing.assert_allclose((low_res + 1) * 127.5, np.asarray(expected), atol=1)
    assert len(corners) > 10


def test_batches_do_not_depend_on_the_number_of_threads(photo, monkeypatch):
    found = []
    for count in (1, 7):
        monkeypatch.setattr(tasks, "num_threads", lambda count=count: count)
        monkeypatch.setattr(pipeline, "num_threads", tasks.num_threads)
        found.append(_batches(photo, 12, batch_size=5))
    assert _equal(*found)


def test_bad_configurations_are_refused(config):
    for changes, message in (
        (
            {"low_res_size": 3},
            r"low_res_size \(3\) must be a proper divisor of image_size \(8\); choose one of 1, 2, 4",
        ),
        ({"low_res_size": 8}, "proper divisor"),
        ({"image_size": 0}, "image_size"),
        ({"max_text_length": 0}, "max_text_length"),
        ({"crop": "left"}, "crop is 'left'; choose one of none, centre, random"),
        ({"corpus_dir": ""}, "corpus_dir"),
    ):
        with pytest.raises(UserError, match=message):
            config(**changes)


def test_bad_arguments_are_refused(config):
    for options, message in (
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 3, "rows": [0, 3]}, r"rows \(\[0, 3\]\) must be rising numbers in \[0, 3\)"),
        ({"rows": [1, 1]}, "rows"),
        ({"rows": []}, "rows"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"start_step": -1}, "start_step"),
    ):
        with pytest.raises(UserError, match=message):
            _batches(config(), 1, **options)


def test_bad_corpora_and_stores_are_refused(config, tmp_path, numbered_store):
    for changes, message in (
        ({"image_size": 16}, r"image_size \(16\) is larger than the images of corpus .* \(8\)"),
        ({"split": "dev"}, "split 'dev' is not in corpus .*; choose one of train, val"),
        ({"corpus_dir": str(tmp_path / "absent")}, "does not exist"),
        ({"corpus_dir": str(tmp_path / "store")}, r"has no corpus\.json"),
        ({"store_dir": str(tmp_path / "absent")}, "store .*absent' does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            _batches(config(**changes), 1)
    few = numbered_store(3, name="few")
    with pytest.raises(UserError, match=r"example key b'example-\d+' is not in the embedding store"):
        _batches(config(store_dir=few), 3)
    with pytest.raises(UserError, match=r"example 'example-\d+' has \d token embeddings; max_text_length is 1"):
        _batches(config(max_text_length=1), 3)


def test_a_shard_damaged_while_training_is_named(config):
    made = config()
    for path in Path(made.corpus_dir).glob("train-*.array_record"):
        content = bytearray(path.read_bytes())
        content[content.index(b"IHDR")] ^= 1
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"shard {re.escape(made.corpus_dir)}/train-.* is damaged"):
        _batches(made, 3)


def test_kept_originals_are_read_as_squares_of_their_corpus(tmp_path, source_of, numbered_store):
    """Turned and wide JPEG files beside a PNG: what Pillow makes of them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    wide = Image.fromarray(coarse).resize((40, 24), Image.Resampling.BICUBIC)
    files = []
    for kind, options in (("JPEG", {}), ("JPEG", {"exif": exif}), ("PNG", {})):
        buffer = io.BytesIO()
        wide.save(buffer, kind, quality=95, **options)
        files.append(buffer.getvalue())
    examples = [RawExample(key=f"example-{i:03d}", image=file, caption="c") for i, file in enumerate(files)]
    out = str(tmp_path / "originals")
    build_corpus(source_of(examples), out, BuildConfig(name="o", image_size=12, image_format="original"))
    store = numbered_store(3)
    for crop, size in (("none", 12), ("centre", 8)):
        config = DataConfig(corpus_dir=out, store_dir=store, image_size=size, max_text_length=3, crop=crop)
        (batch,) = _batches(config, 1, batch_size=3)
        for image, text in zip(batch["x0"], batch["text"], strict=True):
            whole = decode_image(files[int(text[0, 0])])
            expected = np.asarray(centre_square(whole, 12), np.float64)
            cut = slice((12 - size) // 2, (12 + size) // 2)
            np.testing.assert_allclose((image + 1) * 127.5, expected[cut, cut], atol=12)
