"""Sizes of a corpus: which one a picture gets, what is stored of it and where; squares are stored as ever."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.raw import RawExample
from imagen_jax.data.records import Corpus
from imagen_jax.data.sizes import check_sizes, nearest_size, parse_sizes, scaled, too_small
from imagen_jax.errors import UserError

SIZES = ((20, 12), (16, 16), (12, 20))


def _picture(number: int, height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), number, np.uint8)


def _built(tmp_path: Path, source_of, shapes: list[tuple[int, int]], **changes) -> Corpus:
    examples = [
        RawExample(key=f"k{i}", image=_picture(i, *shape), caption="a b", split="val" if i % 5 == 4 else "train")
        for i, shape in enumerate(shapes)
    ]
    config = BuildConfig(**{"name": "tiny", "image_size": 16, "sizes": SIZES, "examples_per_shard": 2, **changes})
    build_corpus(source_of(examples), tmp_path / "corpus", config)
    return Corpus(tmp_path / "corpus")


def test_sizes_are_read_as_people_write_them() -> None:
    assert parse_sizes("40x24, 32x32,24x40") == ((40, 24), (32, 32), (24, 40))


@pytest.mark.parametrize("text", ["", "40", "40x", "40x24,", "40x24x3", "-4x4", "4.5x4", "40X24;8x8"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="HEIGHTxWIDTH"):
        parse_sizes(text)


@pytest.mark.parametrize(
    "sizes, problem",
    [
        (((16, 17),), "272 pixels; expected 192 to 256"),
        (((16, 11),), "176 pixels"),
        (((16, 16), (20, 12), (16, 16)), "twice"),
        (((0, 16),), "integer >= 1"),
        (((16.0, 16),), "integer >= 1"),
        ((16, 16), "pairs of height and width"),
        (((16, 16, 16),), "pairs of height and width"),
        ("16x16", "pairs of height and width"),
    ],
)
def test_sizes_of_other_work_and_no_sizes_are_refused(sizes, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        check_sizes("sizes", sizes, 16)


def test_the_nearest_size_is_the_one_of_nearest_ratio() -> None:
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 3000, (300, 2)).tolist():
        distances = [abs(math.log(height / width) - math.log(h / w)) for h, w in SIZES]
        best = nearest_size((height, width), SIZES)
        assert distances[SIZES.index(best)] == pytest.approx(min(distances))


def test_of_two_sizes_as_near_the_first_named_is_taken() -> None:
    for side in range(1, 200):
        assert nearest_size((side, side), ((20, 12), (12, 20))) == (20, 12)
        assert nearest_size((side, side), ((12, 20), (20, 12))) == (12, 20)


def test_a_picture_may_not_be_enlarged_more_than_a_square() -> None:
    assert not too_small((12, 20), (12, 20), 16, 16)
    assert too_small((11, 20), (12, 20), 16, 16) == "image is 20x11; to become 20x12 it must have 20x12"
    assert too_small((12, 19), (12, 20), 16, 16)
    assert not too_small((6, 10), (12, 20), 16, 8)
    assert too_small((6, 9), (12, 20), 16, 8) == "image is 9x6; to become 20x12 it must have 10x6"


def test_a_stage_sees_sizes_of_its_own_scale() -> None:
    assert scaled((48, 80), 16, 64) == (12, 20)
    assert scaled((48, 82), 16, 64) is None


def test_records_of_a_size_lie_together(tmp_path: Path, source_of) -> None:
    shapes = [(16, 16), (30, 18), (24, 40), (64, 60), (16, 16), (200, 100), (20, 20), (16, 27), (21, 19), (99, 99)]
    corpus = _built(tmp_path, source_of, shapes)
    assert corpus.num_examples("train") == 8 and corpus.num_examples("val") == 2
    assert [(one.size, one.first, one.count) for one in corpus.sizes("train")] == [
        ((20, 12), 0, 2),
        ((16, 16), 2, 4),
        ((12, 20), 6, 2),
    ]
    assert [(one.size, one.first, one.count) for one in corpus.sizes("val")] == [((16, 16), 0, 2)]
    files = [shard["file"] for shard in corpus.manifest["splits"]["train"]["shards"]]
    assert files == [
        "train-20x12-00000-of-00001.array_record",
        "train-16x16-00000-of-00002.array_record",
        "train-16x16-00001-of-00002.array_record",
        "train-12x20-00000-of-00001.array_record",
    ]
    for part in corpus.sizes("train"):
        for record in list(corpus.records("train"))[part.first : part.first + part.count]:
            image = np.asarray(Image.open(io.BytesIO(record.image)))
            assert image.shape == (*part.size, 3) and (record.height, record.width) == part.size
            number = int(record.key[1:])
            assert (image == number).all() and record.original_size == shapes[number]
    corpus.verify()


def test_a_picture_keeps_its_shape_and_loses_what_stands_out(tmp_path: Path, source_of) -> None:
    # 24 x 50 covers 12 x 20 at 12 x 25: five of its columns of ten, two and a half at each side, are cut off.
    picture = np.zeros((24, 50, 3), np.uint8)
    picture[:, 5:45] = 200
    build_corpus(
        source_of([RawExample(key="k", image=picture, caption="c")]),
        tmp_path / "one",
        BuildConfig(name="one", image_size=16, sizes=SIZES),
    )
    (record,) = Corpus(tmp_path / "one").records("train")
    image = np.asarray(Image.open(io.BytesIO(record.image)))
    # The filter mixes some of what was cut into the outermost columns alone.
    assert (image[:, 2:-2] == 200).all() and image.min() > 100


def test_equal_settings_give_equal_bytes_and_other_sizes_another_corpus(tmp_path: Path, source_of) -> None:
    shapes = [(16, 16), (30, 18), (24, 40)]
    _built(tmp_path / "a", source_of, shapes)
    _built(tmp_path / "b", source_of, shapes)
    for path in sorted((tmp_path / "a" / "corpus").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / "corpus" / path.name).read_bytes()
    with pytest.raises(UserError, match="build.sizes"):
        _built(tmp_path / "a", source_of, shapes, sizes=SIZES[:2])


def test_pictures_that_would_be_enlarged_are_counted(tmp_path: Path, source_of) -> None:
    corpus = _built(tmp_path, source_of, [(16, 16), (11, 20), (12, 20)])
    assert corpus.manifest["num_rejected"] == 1 and corpus.num_examples("train") == 2
    assert "to become 20x12" in json.loads((tmp_path / "corpus" / "rejects.jsonl").read_text())["reason"]


def test_a_corpus_of_squares_knows_nothing_of_sizes(tmp_path: Path, source_of) -> None:
    """Its manifest and records have the fields that they had before there were sizes, and no others."""
    corpus = _built(tmp_path, source_of, [(16, 20), (16, 16)], sizes=())
    assert corpus.sizes("train") == ()
    assert "sizes" not in corpus.manifest["settings"]["build"]
    assert set(corpus.manifest["splits"]["train"]) == {"num_examples", "shards"}
    assert corpus.manifest["splits"]["train"]["shards"][0]["file"] == "train-00000-of-00001.array_record"
    features = tf.train.Example.FromString(corpus.read("train", [0])[0]).features.feature
    assert set(features) == {"key", "image", "caption", "height", "width", "meta"}


def test_a_manifest_that_counts_other_sizes_is_refused(tmp_path: Path, source_of) -> None:
    corpus = _built(tmp_path, source_of, [(16, 16), (24, 40)])
    path = tmp_path / "corpus" / "corpus.json"
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"]["sizes"][0]["num_examples"] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="do not count its 2 records"):
        Corpus(tmp_path / "corpus").sizes("train")
    manifest["splits"]["train"]["sizes"] = [{"height": 3}]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="sizes of split 'train'"):
        Corpus(tmp_path / "corpus").sizes("train")
    assert corpus.sizes("train")
