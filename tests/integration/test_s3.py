"""The whole way in a bucket of S3's protocol: the same numbers and pictures as on this machine."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax.checkpoints import checkpoints, folders
from imagen_jax.data.corpora import build_shapes
from imagen_jax.data.records import Corpus
from imagen_jax.files import as_path, write_bytes
from imagen_jax.main import main
from tests.integration.running import flags_of, train_stage

URL = "s3://bucket-a/cascade"


@pytest.mark.slow
def test_from_corpus_to_pictures(s3_bucket, root, tmp_path):
    place = as_path(URL)
    build_shapes(place / "corpus", {"train": 48, "val": 4}, seed=0, vocab_size=200)
    assert main(["cache_text", "--gin_file=tests/integration/tiny_base.gin", *flags_of(place)]) == 0
    assert train_stage(place, "base") == 0
    assert folders.saved_steps(place / "base") == folders.saved_steps(root / "base")
    # Again from the checkpoint before.
    folders.remove(folders.checkpoint_dir(place / "base", 4))
    assert train_stage(place, "base") == 0
    one, other = (checkpoints.load_params(where / "base") for where in (root, place))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    drawn = []
    for cascade, output in ((root / "base", tmp_path / "samples"), (place / "base", place / "samples")):
        words = ["sample", "--checkpoint", str(cascade), "--output", str(output), "--seed", "3", "a red circle"]
        assert main(words) == 0
        drawn.append(np.asarray(Image.open(io.BytesIO((output / "00000.png").read_bytes()))))
    np.testing.assert_array_equal(*drawn)
    assert not any("lock" in name for name in s3_bucket.names())


def test_a_corpus_of_pictures_in_a_bucket(s3_bucket):
    for number in range(3):
        content = io.BytesIO()
        Image.new("RGB", (9, 8), (number,) * 3).save(content, "PNG")
        write_bytes(f"{URL}/pictures/{number}.png", content.getvalue())
        write_bytes(f"{URL}/pictures/{number}.txt", f"number {number}\n".encode())
    words = ["build_corpus", "--images", f"{URL}/pictures", "--output", f"{URL}/corpus", "--image_size=8"]
    assert main(words) == 0
    assert Corpus(f"{URL}/corpus").num_examples("train") == 3
    assert main([*words[:-1], "--image_size=4"]) == 2  # It is there, of another size.
