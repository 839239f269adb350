"""Batches of a corpus of sizes: one size each, the same for all hosts and restarts, with how each picture is framed."""

import itertools

import numpy as np
import pytest

from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.config import CorpusShare, DataConfig
from imagen_jax.data.pipeline import BatchIterator
from imagen_jax.data.raw import RawExample
from imagen_jax.errors import UserError

SIZES = ((20, 12), (16, 16), (12, 20))
# Of the raw pictures, in turn; the second becomes 16x16 with two columns cut off at each side.
SHAPES = [(20, 12), (32, 40), (24, 40)]
NUM_EXAMPLES = 18


@pytest.fixture
def config(tmp_path, source_of, numbered_store):
    examples = [
        RawExample(
            key=f"example-{i:03d}", image=np.full((*SHAPES[i % 3], 3), i, np.uint8), caption=f"{i}", split="train"
        )
        for i in range(NUM_EXAMPLES)
    ]
    corpus_dir, store_dir = str(tmp_path / "sized"), numbered_store(NUM_EXAMPLES)
    build_corpus(source_of(examples), corpus_dir, BuildConfig(name="sized", image_size=16, sizes=SIZES))

    def make(**changes) -> DataConfig:
        own = {"corpus_dir": corpus_dir, "store_dir": store_dir, "image_size": 16, "sizes": SIZES, "max_text_length": 3}
        return DataConfig(**{**own, **changes})

    return make


def _batches(config: DataConfig, count: int, **options) -> list[dict[str, np.ndarray]]:
    options = {"batch_size": 4, "seed": 1, "start_step": 0, **options}
    return list(itertools.islice(BatchIterator(config, **options), count))


def _numbers(batch: dict[str, np.ndarray]) -> list[int]:
    return np.round((batch["x0"][:, 0, 0, 0] + 1) * 127.5).astype(int).tolist()


def _equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return set(left) == set(right) and all(np.array_equal(left[name], right[name]) for name in left)


def test_rows_of_a_batch_share_a_size_and_keep_their_text_and_framing(config) -> None:
    half = config(image_size=8, low_res_size=4, sizes=tuple((h // 2, w // 2) for h, w in SIZES))
    sizes = set()
    for batch in _batches(half, 8):
        numbers, size = _numbers(batch), batch["x0"].shape[1:3]
        sizes.add(size)
        assert batch["low_res"].shape == (4, size[0] // 2, size[1] // 2, 3)
        assert {(SIZES[number % 3][0] // 2, SIZES[number % 3][1] // 2) for number in numbers} == {size}
        for row, number in enumerate(numbers):
            assert batch["text"][row, 0, 0] == number and batch["text_mask"][row].sum() == 1 + number % 3
            for name in ("x0", "low_res"):
                np.testing.assert_allclose(batch[name][row], number / 127.5 - 1, atol=1e-6)
            # In pixels of x0, at half of the corpus's size.
            framing = {0: [10, 6, 0, 0, 10, 6], 1: [16, 20, 0, 1, 8, 8], 2: [12, 20, 0, 0, 6, 10]}[number % 3]
            np.testing.assert_allclose(batch["framing"][row], framing, atol=1e-5)
    assert sizes == {(10, 6), (8, 8), (6, 10)}


def test_a_host_reads_its_rows_and_a_restart_goes_on(config) -> None:
    whole = _batches(config(), 7)
    for rows in ([0, 2], [3], [1, 2, 3]):
        for mine, batch in zip(_batches(config(), 7, rows=rows), whole, strict=True):
            assert _equal(mine, {name: array[rows] for name, array in batch.items()})
    for mine, batch in zip(_batches(config(), 3, start_step=4), whole[4:], strict=True):
        assert _equal(mine, batch)


def test_position_names_corpus_and_step_as_ever(config) -> None:
    batches = BatchIterator(config(), batch_size=4, seed=1, start_step=5)
    next(batches)
    place = batches.position()
    batches.close()
    assert place["step"] == 6 and place["num_examples"] == NUM_EXAMPLES
    assert set(place) == {"step", "seed", "batch_size", "split", "num_examples", "corpus"}


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"sizes": ()}, r"DataConfig.sizes is empty: set it to \(\(20, 12\), \(16, 16\), \(12, 20\)\)"),
        ({"sizes": SIZES[:2]}, "has, at image_size 16, pictures of sizes 20x12, 16x16, 12x20"),
        ({"image_size": 6, "sizes": ((6, 6),)}, "are no whole numbers at image_size 6 of 16"),
        ({"image_size": 32, "sizes": ((32, 32),)}, "larger than the images of corpus"),
    ],
)
def test_other_sizes_than_the_corpus_has_are_refused(config, changes, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        BatchIterator(config(**changes), batch_size=4, seed=1, start_step=0)


def test_a_corpus_of_squares_has_no_sizes(config, numbered_corpus) -> None:
    squares = config(corpus_dir=numbered_corpus(4, image_size=16))
    with pytest.raises(UserError, match="square pictures; DataConfig.sizes is 20x12, 16x16, 12x20: set it to"):
        BatchIterator(squares, batch_size=4, seed=1, start_step=0)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"crop": "centre"}, "crop 'none'"),
        ({"corpus_dir": None, "store_dir": None, "mixture": (CorpusShare(corpus_dir="a"),)}, "is of one corpus"),
        ({"low_res_size": 8, "image_size": 16, "sizes": ((17, 15),)}, "17x15 must be divisible by 2"),
        ({"sizes": ((40, 24),)}, "960 pixels; expected 192 to 256"),
    ],
)
def test_settings_that_do_not_fit_sizes_are_refused(config, changes, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        config(**changes)
