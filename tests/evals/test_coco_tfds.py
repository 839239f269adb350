"""COCO out of a dataset of TFDS's own features, as its builder of coco_captions declares them."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import gcs_utils
from tensorflow_datasets.object_detection import coco_captions

from imagen_jax.errors import UserError
from imagen_jax.evals import coco_tfds
from imagen_jax.evals.coco_tfds import unpack_coco
from imagen_jax.image_files import decode_image
from tests.scripts import run_script

# By TFDS's split, number of each image and of its captions.
CONTENT = {"train": {1: [10]}, "val": {9: [101, 102]}, "test": {4: [103], 5: []}, "restval": {7: [99, 98]}}

with tfds.core.registered.skip_registration():

    class CocoCaptions(coco_captions.CocoCaptions):
        """The published dataset's name, configs and features, of a few grey images."""

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(images) for split, images in CONTENT.items()}

        def _generate_examples(self, images):
            for number, captions in images.items():
                yield (
                    number,
                    {
                        "image": np.full((8, 10, 3), number, np.uint8),
                        "image/filename": f"COCO_val2014_{number:012d}.jpg",
                        "image/id": number,
                        "objects": [],
                        "captions": [{"id": one, "text": f"Caption {one}. "} for one in captions],
                    },
                )


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def dataset(request, tmp_path_factory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gcs_utils, "_is_gcs_disabled", True)  # It would look for the dataset at Google.
        builder = CocoCaptions(data_dir=tmp_path_factory.mktemp(request.param), file_format=request.param)
        builder.download_and_prepare()
    return str(builder.data_dir)


def test_three_splits_of_it_are_cocos_validation_set(dataset, tmp_path, capsys):
    """Numbers, texts and encoded images are those of the records; an image without captions is counted and named."""
    assert run_script("unpack_coco.py", "--dataset", dataset, "--out", str(tmp_path)) == 0
    told = capsys.readouterr().out
    assert "3 images with 5 captions" in told
    assert "1 images without caption: COCO_val2014_000000000005.jpg" in told and "captions without" not in told
    images = {path.name: path for path in (tmp_path / "val2014").iterdir()}
    assert {np.asarray(decode_image(images[f"COCO_val2014_{n:012d}.jpg"])).mean() for n in (4, 5, 7, 9)} == {4, 5, 7, 9}
    before = {path: path.stat().st_mtime_ns for path in images.values()}
    images["COCO_val2014_000000000004.jpg"].write_bytes(b"half")
    found = unpack_coco(dataset, str(tmp_path), "val2014")
    assert found.caption_ids == {4: (103,), 7: (98, 99), 9: (101, 102)}
    assert found.captions[103] == "Caption 103."
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"COCO_val2014_000000000004.jpg"}
    assert unpack_coco(dataset, str(tmp_path), "train2014").caption_ids == {1: (10,)}


def example(**changes: object) -> dict[str, object]:
    values = {
        "image": [b"x"],
        "image/id": [4],
        "image/filename": [b"4.jpg"],
        "captions/id": [1],
        "captions/text": [b"A"],
    }
    return {**values, **changes}


def test_captions_without_image_are_counted_and_named(monkeypatch, tmp_path):
    rows = [example(), example(**{"image": [], "image/id": [5], "image/filename": [b"5.jpg"], "captions/id": [2]})]
    monkeypatch.setattr(coco_tfds, "holds_tfds", lambda folder: True)
    monkeypatch.setattr(coco_tfds, "tfds_examples", lambda folder, splits: iter(rows))
    found = unpack_coco("dataset", str(tmp_path), "val2014")
    assert found.captions == {1: "A"} and found.captions_without_image == (2,)
    assert "1 captions without image: 2" in found.told()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image/filename": [b"../4.jpg"]}, "file name of one image"),
        ({"image/id": []}, "image/id"),
        ({"captions/id": []}, "captions of 4.jpg"),
        ({"captions/text": [b"\xff"]}, "captions of 4.jpg"),
    ],
)
def test_examples_that_are_not_cocos_are_refused(monkeypatch, tmp_path, change, said):
    monkeypatch.setattr(coco_tfds, "holds_tfds", lambda folder: True)
    monkeypatch.setattr(coco_tfds, "tfds_examples", lambda folder, splits: iter([example(**change)]))
    with pytest.raises(UserError, match=said) as error:
        unpack_coco("dataset", str(tmp_path), "val2014")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "annotations").iterdir())


def test_what_is_no_such_dataset_is_refused(dataset, tmp_path):
    with pytest.raises(UserError, match="tfds build coco_captions"):
        unpack_coco(str(tmp_path), str(tmp_path / "coco"), "val2014")
    with pytest.raises(UserError, match="val2014, train2014"):
        unpack_coco(dataset, str(tmp_path / "coco"), "val2017")
    assert not (tmp_path / "coco").exists()


def test_a_damaged_shard_leaves_no_annotations(dataset, tmp_path):
    for path in Path(dataset).iterdir():
        content = path.read_bytes()
        cut = content[:-40] if "-restval." in path.name else content
        (tmp_path / path.name).write_bytes(cut)
    with pytest.raises(UserError, match="restval.* is damaged") as error:
        unpack_coco(str(tmp_path), str(tmp_path / "coco"), "val2014")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "coco" / "annotations").iterdir())
