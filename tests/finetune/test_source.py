"""A run that starts from trained parameters: of a run, averaged or last, or of a bundle; all that differs is named."""

import dataclasses

import jax
import numpy as np
import pytest

from imagen_jax.checkpoints import checkpoints, folders
from imagen_jax.errors import UserError
from imagen_jax.export.bundle import export_bundle
from imagen_jax.finetune.source import Source, check_fits, load_stage
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.train import loop, setup
from imagen_jax.train.setup import TrainSetup
from tests.train import tiny_run


@pytest.fixture(scope="module")
def bundle(base, tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("bundle") / "bundle")
    export_bundle([load_stage(base.model_dir)], path)
    return path


@pytest.mark.parametrize("ema", [True, False])
def test_a_run_starts_from_averaged_or_last_parameters(base, tmp_path, ema):
    config = tiny_run.tiny_config(tmp_path / "new", init_from=base.model_dir, init_ema=ema)
    state, position, told = loop.start_state(config, TrainSetup.build(config))
    item = "ema_params" if ema else "params"
    wanted = checkpoints.load_item(folders.checkpoint_dir(base.model_dir, 6), item)
    assert tiny_run.leaves_equal(state.params, wanted) and tiny_run.leaves_equal(state.ema_params, wanted)
    assert position is None and int(state.step) == 0 and "checkpoint_6-" in told
    other = checkpoints.load_item(folders.checkpoint_dir(base.model_dir, 6), "params" if ema else "ema_params")
    assert not tiny_run.leaves_equal(state.params, other)


def test_a_bundle_starts_the_same_run_as_what_it_was_made_of(base, bundle, tmp_path):
    runs = [
        tiny_run.tiny_config(tmp_path / name, init_from=path)
        for name, path in zip("ab", [base.model_dir, bundle], strict=True)
    ]
    states = [loop.train(config, stop_at=2) for config in runs]
    assert tiny_run.leaves_equal(*states)
    with pytest.raises(UserError, match="holds averaged parameters alone; set init_ema = True"):
        Source.find(bundle, "base").load(ema=False)
    assert Source.find(bundle, "other").checkpoint == Source.find(base.model_dir, "base").checkpoint


def test_all_that_differs_is_named_in_one_line(base, bundle):
    stage = dataclasses.replace(base.stage, model=tiny_run.TinyNet(dim=8))
    text = TextEncoder(tiny_run.text_config(tiny_run.TEXT_DIM, tiny_run.TEXT_LENGTH + 1)).fingerprint()
    for path in (base.model_dir, bundle):
        with pytest.raises(UserError) as told:
            check_fits(Source.find(path, "base"), stage, text)
        message = str(told.value)
        assert "\n" not in message and "text max_length: got 5, expected 4" in message
        for name in ("Dense_0.kernel", "Dense_0.bias", "Conv_0.kernel", "Conv_0.bias", "Conv_1.kernel"):
            assert f"{name}: got [" in message
        assert "Conv_1.kernel: got [3, 3, 8, 3], there it is [3, 3, 16, 3]" in message


def test_a_run_is_refused_before_it_reads_data_and_goes_on_without_its_source(base, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "shares_of", lambda data: ())
    other = dataclasses.replace(base.stage, model=tiny_run.TinyNet(dim=8))
    config = tiny_run.tiny_config(tmp_path / "new", init_from=base.model_dir, stage=other)
    with pytest.raises(UserError, match=r"the run cannot start from .*Conv_0.kernel"):
        setup.check_text(config)
    config = tiny_run.tiny_config(tmp_path / "gone", init_from=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no checkpoint under .*nowhere"):
        setup.check_text(config)
    loop.train(tiny_run.tiny_config(tmp_path / "gone"), stop_at=2)
    setup.check_text(config)
    assert int(loop.train(config, stop_at=4).step) == 4


def test_a_checkpoint_that_is_another_by_now_is_refused(base):
    source = Source.find(base.model_dir, "base")
    older = source.checkpoint.replace("checkpoint_6", "checkpoint_4")
    with pytest.raises(UserError, match=f"but {older} is wanted"):
        Source.find(base.model_dir, "base", older)
    params = jax.tree.leaves(source.load().weights.host)
    assert all(isinstance(leaf, np.ndarray) for leaf in params)
