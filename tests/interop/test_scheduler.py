"""Single DDPM steps and noising against diffusers' (tests/golden/c_schedulers)."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.interop.scheduler import DiscreteDDPM

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "c_schedulers"
CASES = [case for case in json.loads((GOLDEN / "cases.json").read_text()) if case["case"].startswith("ddpm")]
STEPS = np.load(GOLDEN / "steps.npz")


def test_every_step_is_diffusers():
    """27 cases: prediction by variance by thresholding."""
    assert len(CASES) == 27
    for case in CASES:
        scheduler = DiscreteDDPM.read(case["case"], case["config"])
        times = scheduler.timesteps(case["num_inference_steps"])
        assert [int(times[i]) for i in case["positions"]] == case["timesteps"]
        arrays = {
            key: np.moveaxis(STEPS[f"{case['case']}/{key}"], -3, -1)
            for key in ("model_output", "sample", "noise", "prev_sample", "pred_original_sample")
        }
        for i, (t, previous) in enumerate(zip(case["timesteps"], case["prev_timesteps"], strict=True)):
            args = (np.asarray(arrays[key][i]) for key in ("model_output", "sample"))
            output, z_t = (x if x.ndim == 4 else x[None] for x in args)
            z, x0 = scheduler.step(
                *map(jnp.asarray, (output, z_t)), t, previous, jnp.asarray(arrays["noise"][i].reshape(z_t.shape))
            )
            for name, got in (("prev_sample", z), ("pred_original_sample", x0)):
                wanted = arrays[name][i].reshape(z_t.shape)
                # At the noisy end 1 / alpha grows float32's rounding.
                scale = max(1.0, float(np.abs(wanted).max()))
                np.testing.assert_allclose(got, wanted, atol=2e-4 * scale, rtol=0, err_msg=f"{case['case']} {t} {name}")


def test_tables_of_betas_are_diffusers():
    names = [name for name in STEPS.files if name.startswith("alphas_cumprod/")]
    assert names
    for name in names:
        table = DiscreteDDPM(beta_schedule=name.split("/")[1]).alphas_cumprod()
        np.testing.assert_allclose(table, STEPS[name], rtol=1e-4, atol=1e-9)


def test_all_faults_of_a_config_are_named_at_once():
    given = {"beta_schedule": "sigmoid", "novelty": 1, "steps_offset": 0.5}
    with pytest.raises(UserError, match="novelty is not known; beta_schedule .*; steps_offset"):
        DiscreteDDPM.read("scheduler_config.json", given)


@pytest.mark.parametrize(
    "given", [{"num_train_timesteps": 0}, {"num_train_timesteps": 2**31}, {"beta_start": float("nan")}, {"beta_end": 2}]
)
def test_settings_that_no_schedule_can_have(given):
    with pytest.raises(UserError, match=rf"{next(iter(given))} must be from"):
        DiscreteDDPM.read("scheduler_config.json", given)


def test_an_offset_that_leads_beyond_the_last_time():
    scheduler = DiscreteDDPM(steps_offset=1)
    assert scheduler.timesteps(500)[0] == 999
    with pytest.raises(UserError, match="at time 1000, but num_timesteps is 1000"):
        scheduler.timesteps(1000)
