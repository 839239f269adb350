"""The steps of a plan: order, going back, guidance, and what no schedule has."""

import numpy as np
import pytest

from imagen_jax.diffusion.guidance import ConstantGuidance, IntervalGuidance
from imagen_jax.diffusion.schedules import CosineSchedule, DiscreteSchedule
from imagen_jax.diffusion.time_grids import RespacedGrid, UniformGrid
from imagen_jax.errors import UserError
from imagen_jax.stage.steps import make_step_table, visits


def _plan(num_steps: int, **options):
    guidance = options.pop("guidance", ConstantGuidance())
    return make_step_table(CosineSchedule(), UniformGrid(), num_steps, 3.0, guidance, **options)


def test_steps_follow_each_other_down_to_the_clean_image() -> None:
    table = _plan(5)
    assert len(table.log_snr_t) == 5
    np.testing.assert_array_equal(table.log_snr_s[:-1], table.log_snr_t[1:])
    np.testing.assert_array_equal(table.log_snr_next, table.log_snr_s)
    np.testing.assert_array_equal(table.log_snr_before[1:], table.log_snr_t[:-1])
    assert table.log_snr_before[0] == -np.inf and table.log_snr_s[-1] == 20.0
    # alpha = cos(pi t / 2) at t = 0.8, …, 0.2.
    alpha2 = 1 / (1 + np.exp(-table.log_snr_t[1:].astype(np.float64)))
    np.testing.assert_allclose(np.sqrt(alpha2), np.cos(np.pi / 2 * np.array([0.8, 0.6, 0.4, 0.2])), rtol=1e-5)


def test_going_back_as_repaint_draws_it() -> None:
    order, following = visits(5, 2, 2)
    assert order == [0, 1, 0, 1, 2, 3, 2, 3, 4, 4]
    assert following == [1, 0, 1, 2, 3, 2, 3, 4, 4, 5]
    table = _plan(6, num_resamples=2, jump_length=2)
    assert len(table.log_snr_t) == 11
    back = table.log_snr_next < table.log_snr_s
    assert back.tolist() == [False, True, False, False, False, True, False, False, True, False, False]
    # Where the next step begins is where it goes, and nothing is remembered across a jump.
    np.testing.assert_array_equal(table.log_snr_next[:-1], table.log_snr_t[1:])
    assert (table.log_snr_before[1:][back[:-1]] == -np.inf).all()
    assert np.isfinite(table.log_snr_before[1:][~back[:-1]]).all()


def test_a_later_start_leaves_out_the_noisiest_times() -> None:
    half = _plan(4, t_start=0.5)
    np.testing.assert_allclose(half.log_snr_t[0], 0.0 + 2 * np.log(1.0), atol=1e-5)  # alpha = sigma at t = 1/2
    assert len(half.log_snr_t) == 4
    sections = RespacedGrid(sections=(2, 3), num_timesteps=100)
    discrete = DiscreteSchedule(num_timesteps=100)
    whole = make_step_table(discrete, sections, 5, 1.0, ConstantGuidance())
    late = make_step_table(discrete, sections, 5, 1.0, ConstantGuidance(), t_start=0.6)
    np.testing.assert_array_equal(late.log_snr_t, whole.log_snr_t[-3:])


def test_guidance_on_an_interval_has_its_weight_there_alone() -> None:
    table = _plan(10, guidance=IntervalGuidance(t_min=0.25, t_max=0.65))
    # Times 1, 0.9, …, 0.1.
    assert table.guidance_weight.tolist() == [1, 1, 1, 1, 3, 3, 3, 3, 1, 1]


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(UserError, match="more than the schedule has: 100"):
        make_step_table(DiscreteSchedule(num_timesteps=100), UniformGrid(), 101, 1.0, ConstantGuidance())
    with pytest.raises(UserError, match="leaves no step"):
        grid = RespacedGrid(sections=(1, 1), num_timesteps=100)
        make_step_table(DiscreteSchedule(num_timesteps=100), grid, 2, 1.0, ConstantGuidance(), t_start=0.005)
