"""Runs of the version before: what of them cannot be read is told, and left as it was."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from imagen_jax.checkpoints import checkpoints, proof
from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.checkpoints.upgrade import upgrade_run
from imagen_jax.errors import UserError

CONFIG = (Path(__file__).parents[1] / "golden" / "run_of_0_1" / "base.gin").read_bytes()


@pytest.mark.parametrize(
    ("config", "store", "message"),
    [
        (CONFIG + b"\xff", "{}", "config.gin cannot be read .*utf-8"),
        (CONFIG, "{", "store.json is damaged .*add --vocabulary=PATH"),
        (CONFIG, '{"fingerprint": {}}', "store.json has no fingerprint.dtype; .*add --vocabulary=PATH"),
        (CONFIG, "[]", "store.json has .* for its content; expected an object"),
        (
            CONFIG.replace(b"unet.UNet.dim = 8", b"unet.UNet.dim = '8'"),
            "{}",
            "gives UNet '8' for dim; expected a whole number",
        ),
        (
            CONFIG.replace(b"@encoder.TextConfig()", b"@unet.UNet()"),
            "{}",
            "binds no TrainConfig with a Stage, .* TextConfig",
        ),
        (CONFIG.replace(b"SIZE = 16", b"SIZE = %IMAGE_SIZE"), "{}", "config.gin refers to itself"),
        (CONFIG.replace(b"@unet.UNet()", b"@stage.Stage()"), "{}", "config.gin refers to itself"),
    ],
    ids=range(8),
)
def test_what_cannot_be_read_is_told(tmp_path, config, store, message):
    one = {"kernel": jnp.ones(2)}
    state = TrainState(step=jnp.int32(3), params=one, ema_params=one, opt_state=one)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text(store)
    config = config.replace(b"OLD_STORE", str(tmp_path / "store").encode())
    path = checkpoints.save(tmp_path / "run", state, {}, {"config.gin": config}, keep=1)
    before = json.loads((path / "digests.json").read_text())
    with pytest.raises(UserError, match=message):
        upgrade_run(tmp_path / "run")
    proof.verify(path)
    assert proof.read_digests(path) == before
