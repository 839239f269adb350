"""DreamBooth's parts: pictures of the class that the cascade draws, as a list; the loss weighted by source."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import gin_config
from imagen_jax.commands.parts import sample_run
from imagen_jax.commands.parts.sample_options import SampleOptions
from imagen_jax.data.config import CorpusShare, DataConfig
from imagen_jax.data.sources import list_source
from imagen_jax.errors import UserError
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sharding import rules
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.setup import objective_of
from tests.train import tiny_run
from tests.untrained import untrained_cascade

FILE = "configs/experiments/dreambooth.gin"


def test_a_class_is_drawn_into_a_list_that_a_corpus_is_built_of(tmp_path, monkeypatch):
    monkeypatch.setattr(Cascade, "load", lambda *_, **__: untrained_cascade())
    folder = tmp_path / "prior"
    options = SampleOptions(output=str(folder), stage="base", num_images=2, list=True)
    sample_run.draw_to_files("none", ["a cube", "a ring"], options)
    source = list_source(folder / "list.jsonl")
    rows = [row for part in source.parts for row in part()]
    assert [row.caption for row in rows] == ["a cube", "a cube", "a ring", "a ring"]
    pictures = [(folder / f"0000{number}.png").read_bytes() for number in range(4)]
    assert len({*pictures}) == 4
    with pytest.raises(UserError, match="--num_images"):
        SampleOptions(output="x", num_images=0)


def test_the_loss_is_the_subjects_and_lambda_times_the_priors(tmp_path):
    share = CorpusShare(corpus_dir="none", name="subject")
    shares = (share, dataclasses.replace(share, name="prior", loss_weight=0.5))
    data = DataConfig(mixture=shares, image_size=tiny_run.SIZE, max_text_length=tiny_run.TEXT_LENGTH)
    objective = objective_of(tiny_run.tiny_config(tmp_path, data=data))
    params = rules.unbox(objective.init(jax.random.key(0)))
    batch = {**tiny_run.tiny_batch(0, 0, 8), "source": np.int32([0, 0, 0, 1, 1, 1, 1, 1])}
    batch = {name: jnp.asarray(rows) for name, rows in batch.items()}
    rng = jax.random.key(4)
    losses = np.asarray(objective.diffusion_loss(params, (), batch, rng)[1]["per_example_loss"])
    mean, metrics = objective.loss(params, (), batch, rng)
    assert float(mean) == pytest.approx((losses[:3].sum() + 0.5 * losses[3:].sum()) / 8, rel=1e-5)
    # What is told of each source is its own mean, whatever its weight.
    told = metrics["loss_by_source"]
    np.testing.assert_allclose(told.total / told.count, [losses[:3].mean(), losses[3:].mean()], rtol=1e-5)
    equal = (share, dataclasses.replace(share, name="prior"))
    even = objective_of(tiny_run.tiny_config(tmp_path, data=dataclasses.replace(data, mixture=equal)))
    assert even.loss_weights == ()
    assert float(even.loss(params, (), batch, rng)[0]) == pytest.approx(losses.mean(), rel=1e-5)
    with pytest.raises(UserError, match="loss_weight"):
        CorpusShare(corpus_dir="none", loss_weight=-1.0)


def test_the_experiment_adapts_a_base_on_a_mixture():
    names = ("BASE_DIR", "SUBJECT_DIR", "PRIOR_DIR", "MODEL_DIR", "VOCABULARY_PATH")
    bindings = [f"{name} = '{name.lower()}'" for name in names if name != "VOCABULARY_PATH"]
    config = gin_config.load(TrainConfig, [FILE], [*bindings, "VOCABULARY_PATH = 'bytes'", "PRIOR_WEIGHT = 0.25"])
    assert config.init_from == "base_dir" and config.lora is not None and config.lora.targets == (".*",)
    assert [(share.name, share.corpus_dir, share.loss_weight) for share in config.data.mixture] == [
        ("subject", "subject_dir", 1.0),
        ("prior", "prior_dir", 0.25),
    ]
