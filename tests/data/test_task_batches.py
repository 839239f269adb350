"""A seqio task of the user's, as it is: the same batches on every start and every layout of hosts."""

import io
import itertools
from collections.abc import Iterator

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf
from PIL import Image

from imagen_jax.data.config import DataConfig
from imagen_jax.data.task_batches import TaskBatches
from imagen_jax.errors import UserError
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.train import loop
from tests.train import tiny_run

NAME, COUNT = "user_task", 11


def picture(number: int) -> np.ndarray:
    """A picture of one grey level, wide or tall."""
    return np.full((12, 17, 3) if number % 2 else (20, 10, 3), number, np.uint8)


def png(number: int) -> bytes:
    """The same as a file."""
    content = io.BytesIO()
    Image.fromarray(picture(number)).save(content, "PNG")
    return content.getvalue()


def add_task(features: dict[str, tf.TensorSpec], examples: list[dict]) -> None:
    """Registers a task of these examples."""

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        return tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=features)

    if NAME in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(NAME)
    any_rank = {
        name: seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=spec.dtype, rank=len(spec.shape))
        for name, spec in features.items()
    }
    source = seqio.FunctionDataSource(dataset, splits=("train",))
    seqio.TaskRegistry.add(NAME, source=source, preprocessors=[], output_features=any_rank)


PIXELS = {"image": tf.TensorSpec((None, None, 3), tf.uint8), "caption": tf.TensorSpec((), tf.string)}
FILES = {"image": tf.TensorSpec((), tf.string), "caption": tf.TensorSpec((), tf.string)}


@pytest.fixture(autouse=True)
def task() -> Iterator[None]:
    """A task of pictures whose captions are as long as their numbers say."""
    add_task(PIXELS, [{"image": picture(i), "caption": "x" * (i + 1)} for i in range(COUNT)])
    yield
    seqio.TaskRegistry.remove(NAME)


def config(**changes) -> DataConfig:
    """Reads the task at 8 pixels."""
    values = {"task": NAME, "image_size": tiny_run.SIZE, "max_text_length": tiny_run.TEXT_LENGTH}
    return DataConfig(**values | changes)


def batches(count: int, data: DataConfig | None = None, **options) -> list[dict[str, np.ndarray]]:
    options = {"batch_size": 4, "seed": 1, "start_step": 0, "encoder": tiny_run.LetterEncoder(), **options}
    return list(itertools.islice(TaskBatches(data or config(), **options), count))


def numbers(batch: dict[str, np.ndarray]) -> list[int]:
    return np.round((batch["x0"][:, 0, 0, 0] + 1) * 127.5).astype(int).tolist()


def test_pictures_and_captions_belong_together_and_all_come():
    found = batches(2 * COUNT)
    assert {number for batch in found for number in numbers(batch)} == {*range(COUNT)}
    for batch in found[:4]:
        assert batch["x0"].shape == (4, 8, 8, 3) and batch["text"].dtype == np.float32
        expected, mask = tiny_run.LetterEncoder().encode(["x" * (number + 1) for number in numbers(batch)])
        np.testing.assert_array_equal(batch["text"], expected)
        np.testing.assert_array_equal(batch["text_mask"], mask)


@pytest.mark.parametrize("changes", [{}, {"crop": "random", "low_res_size": 4}])
def test_hosts_and_restarts_change_nothing(changes):
    whole = batches(8, config(**changes))
    late, rows = batches(3, config(**changes), start_step=5), batches(8, config(**changes), rows=[1, 3])
    assert set(whole[0]) == {"x0", "text", "text_mask"} | ({"low_res"} if changes else set())
    for name in whole[0]:
        assert np.array_equal(np.stack([one[name] for one in late]), np.stack([one[name] for one in whole[5:]]))
        assert np.array_equal(np.stack([one[name] for one in rows]), np.stack([one[name][[1, 3]] for one in whole]))


def test_a_task_shorter_than_a_batch_comes_again_and_again():
    add_task(PIXELS, [{"image": picture(i), "caption": "x" * (i + 1)} for i in range(3)])
    found = [number for batch in batches(3, batch_size=8) for number in numbers(batch)]
    assert len(found) == 24 and set(found) == {0, 1, 2}
    some = [numbers(batch) for batch in batches(3, batch_size=8, rows=[0, 3, 5])]
    assert some == [[found[start + row] for row in (0, 3, 5)] for start in (0, 8, 16)]
    late = batches(1, batch_size=8, start_step=2)
    assert numbers(late[0]) == found[16:]


def test_files_are_decoded():
    expected = batches(3)
    add_task(FILES, [{"image": png(i), "caption": "x" * (i + 1)} for i in range(COUNT)])
    for one, other in zip(batches(3), expected, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("features", "examples", "message"),
    [
        (
            PIXELS,
            [{"image": picture(0)[:5], "caption": "x"}],
            r"shape \[5, 10, 3\]; expected .* no side below 8 pixels",
        ),
        (PIXELS, [], "gives no example of split 'train'"),
        ({"image": PIXELS["image"]}, [], "lacks caption, it gives image"),
        ({**PIXELS, "image": tf.TensorSpec((None, None, 3), tf.float32)}, [], "is float32; expected uint8 or string"),
    ],
)
def test_tasks_that_do_not_fit_are_told(features, examples, message):
    add_task(features, examples)
    with pytest.raises(UserError, match=message):
        batches(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "none_such"}, "there is no seqio task 'none_such'"),
        ({"split": "test"}, "split 'test' is not in task 'user_task'"),
        ({"corpus_dir": "x"}, "one of corpus_dir, mixture and task"),
        ({"store_dir": "x"}, "has no store_dir"),
    ],
)
def test_bad_settings_are_told(changes, message):
    with pytest.raises(UserError, match=message):
        batches(1, config(**changes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"rows": [3, 1]}, "must be rising numbers"), ({"rows": [4]}, r"in \[0, 4\)"), ({"start_step": -1}, "start_step")],
)
def test_rows_and_steps_that_cannot_be_are_told(arguments, message):
    with pytest.raises(UserError, match=message):
        batches(1, **arguments)


def test_a_run_trains_on_it_and_resumes_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "check_text", lambda config: tiny_run.LetterEncoder())
    build = MeshConfig.build
    monkeypatch.setattr(MeshConfig, "build", lambda self, devices=None: build(self, jax.devices()[:1]))
    whole = loop.train(tiny_run.tiny_config(tmp_path / "whole", data=config()))
    parts = tiny_run.tiny_config(tmp_path / "parts", data=config())
    loop.train(parts, stop_at=5)
    assert tiny_run.leaves_equal(whole, loop.train(parts))
