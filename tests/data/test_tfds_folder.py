"""Datasets that TFDS has prepared become examples, here and in buckets, in both formats of files."""

import re
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import gcs_utils

from imagen_jax.data import raw_tasks
from imagen_jax.data.opening import open_source
from imagen_jax.data.raw import RawExample, Rejection
from imagen_jax.data.records import Corpus
from imagen_jax.data.sources import task_source
from imagen_jax.errors import UserError
from imagen_jax.files import send_files, write_bytes
from imagen_jax.image_files import decode_image
from imagen_jax.main import main


class Pairs(tfds.core.GeneratorBasedBuilder):
    """Pictures of one grey level each with one caption, and with two."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "caption": tfds.features.Text(),
            "captions": tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64}),
            "similarity": np.float32,
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(5)), "validation": self._generate_examples(range(5, 7))}

    def _generate_examples(self, numbers):
        for i in numbers:
            yield (
                i,
                {
                    "image": np.full((9, 11, 3), i, np.uint8),
                    "caption": f"number {i}",
                    "captions": [{"text": f"one of {i}", "id": 0}, {"text": f"two of {i}", "id": 1}],
                    "similarity": i / 4,
                    "label": i % 2,
                },
            )


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def prepared(request, tmp_path_factory) -> Path:
    """DATA_DIR of the dataset."""
    data_dir = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gcs_utils, "_is_gcs_disabled", True)  # It would look for the dataset at Google.
        Pairs(data_dir=data_dir, file_format=request.param).download_and_prepare()
    return data_dir


@pytest.fixture(params=["here", "gs", "s3"])
def place(request, prepared) -> str:
    """DATA_DIR, also in buckets."""
    if request.param == "here":
        return str(prepared)
    request.getfixturevalue({"gs": "bucket", "s3": "s3_bucket"}[request.param])
    send_files(prepared, f"{request.param}://bucket-a/tfds")
    return f"{request.param}://bucket-a/tfds"


def _examples(source) -> list[RawExample]:
    return [one for part in source.parts for one in part()]


def test_every_example_of_every_split_is_there_with_its_facts(place):
    source = open_source(f"{place}/pairs/1.0.0")
    found = _examples(source)
    assert source.num_examples == len(found) == 7
    numbers = [int(one.caption.removeprefix("number ")) for one in found]
    assert sorted(numbers) == [*range(7)]
    for one, number in zip(found, numbers, strict=True):
        assert one.split == ("train" if number < 5 else "validation")
        assert re.fullmatch(rf"{one.split}-00000-0000000\d", one.key)
        assert np.asarray(decode_image(one.image)).mean() == number
        assert one.meta == {"similarity": number / 4, "label": ["even", "odd"][number % 2]}


def test_a_corpus_is_built_of_it(place, tmp_path):
    command = ["build_corpus", "--images", f"{place}/pairs/1.0.0", "--caption_column=captions/text", "--image_size=8"]
    assert main([*command, "--min_size=8", "--output", str(tmp_path / "corpus"), "--filter=similarity >= 0.25"]) == 0
    corpus = Corpus(str(tmp_path / "corpus"))
    assert {split: corpus.num_examples(split) for split in corpus.splits} == {"train": 8, "validation": 4}


def test_a_seqio_task_reads_it_where_it_lies(place, prepared, monkeypatch):
    """Also in a bucket, to which TensorFlow has a way of its own that leads elsewhere."""
    monkeypatch.setenv("TFDS_DATA_DIR", place)
    text = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)
    pixels = seqio.ContinuousFeature(dtype=tf.uint8, rank=3)
    seqio.TaskRegistry.add(
        "pairs",
        source=raw_tasks.PreparedTfdsSource("pairs:1.0.0", ("train", "validation")),
        preprocessors=[lambda dataset: dataset.map(lambda one: {**one, "key": one["caption"]})],
        output_features={"key": text, "image": pixels, "caption": text},
    )
    monkeypatch.setattr(seqio.utils.LazyTfdsLoader, "_MEMOIZED_BUILDERS", {})
    if "://" not in place:  # Other than ours, TFDS looks at the variable when it is imported.
        seqio.TaskRegistry.get("pairs").source.tfds_dataset.override_data_dir(place)
    try:
        source = task_source("pairs", ["train", "validation"])
        if prepared.name.startswith("array_record"):
            with pytest.raises(UserError, match="in files that seqio does not read.*build_corpus --images"):
                _examples(source)
            return
        found = _examples(source)
    finally:
        seqio.TaskRegistry.remove("pairs")
    assert sorted((one.key, int(one.image.mean())) for one in found) == [(f"number {i}", i) for i in range(7)]


def test_what_is_damaged_or_not_there_is_told(prepared, bucket):
    place = "gs://bucket-a/tfds"
    send_files(prepared, place)
    folder = f"{place}/pairs/1.0.0"
    name = next(name for name in bucket.names() if "-train." in name)
    with pytest.raises(UserError, match="has no texts in feature 'label'; it has caption, .*--caption_column"):
        open_source(folder, caption_column="label")
    with pytest.raises(UserError, match="has no images in feature 'caption'"):
        open_source(folder, image_column="caption")
    write_bytes(f"gs://bucket-a/{name}", bucket.content(name)[:300])
    found = _examples(open_source(folder))
    assert any(isinstance(one, Rejection) and "is damaged" in one.reason for one in found)
    bucket.remove(name)
    with pytest.raises(UserError, match="lacks pairs-train.*, which dataset_info.json names"):
        open_source(folder)
    write_bytes(f"{folder}/dataset_info.json", b"{")
    with pytest.raises(UserError, match="is no dataset that TFDS can open"):
        open_source(folder)


def test_a_task_whose_dataset_does_not_fit_or_is_not_there_is_told(prepared, bucket, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket-a/tfds")
    source = raw_tasks.PreparedTfdsSource("pairs:1.0.0", ("train",))
    task = seqio.Task("none", source=source, preprocessors=[], output_features={})
    with pytest.raises(UserError, match="there is no dataset 'pairs:1.0.0' in gs://bucket-a/tfds"):
        raw_tasks._here(task)
    send_files(prepared, "gs://bucket-a/tfds")
    monkeypatch.setenv("IMAGEN_JAX_CACHE_GB", "0.0000001")
    with pytest.raises(UserError, match="more than copies may take; raise IMAGEN_JAX_CACHE_GB, or build a corpus"):
        raw_tasks._here(task)
