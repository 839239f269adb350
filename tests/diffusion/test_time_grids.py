"""Times of the network calls: DeepFloyd IF's published tables, and what any grid has."""

import numpy as np
import pytest

from imagen_jax.diffusion.guidance import ConstantGuidance
from imagen_jax.diffusion.schedules import CosineSchedule, DiscreteSchedule, EDMSchedule
from imagen_jax.diffusion.time_grids import EDMGrid, RespacedGrid, UniformGrid, check_steps
from imagen_jax.errors import UserError
from imagen_jax.stage.steps import make_step_table

# diffusers 0.42, pipelines/deepfloyd_if/timesteps.py, and how many there are in each section.
SMART27 = """999 976 952 928 905 882 858 857 810 762 715 714 572 429 428 286 285 238 190 143 142 118 95 71 47 24 0"""
SUPER27 = (
    """999 991 982 974 966 958 950 941 933 925 916 908 900 899 874 850 825 800 799 700 600 500 400 300 200 100 0"""
)
SUPER40 = """999 992 985 978 971 964 957 949 942 935 928 921 914 907 900 899 879 859 840 820 800 799 766 733 700 699 650
    600 599 500 499 400 399 300 299 200 199 100 99 0"""
SMART50 = """999 988 977 966 955 944 933 922 911 900 899 879 859 840 820 800 799 766 733 700 699 650 600 599 500 499
    400 399 350 300 299 266 233 200 199 179 159 140 120 100 99 88 77 66 55 44 33 22 11 0"""
SMART100 = """999 995 992 989 985 981 978 975 971 967 964 961 957 956 951 947 942 937 933 928 923 919 914 913 908 903
    897 892 887 881 876 871 870 864 858 852 846 840 834 828 827 820 813 806 799 792 785 784 777 770 763 756 749 742 741
    733 724 716 707 699 698 688 677 666 656 655 645 634 623 613 612 598 584 570 569 555 541 527 526 505 484 483 462 440
    439 396 395 352 351 308 307 264 263 220 219 176 132 88 44 0"""
TABLES = {
    "smart27": (SMART27, (7, 4, 2, 1, 2, 4, 7)),
    "super27": (SUPER27, (1, 1, 1, 1, 1, 1, 1, 2, 5, 13)),
    "super40": (SUPER40, (2, 2, 2, 2, 2, 2, 3, 4, 6, 15)),
    "smart50": (SMART50, (10, 6, 4, 3, 2, 2, 3, 4, 6, 10)),
    "smart100": (SMART100, (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 10, 13)),
}


@pytest.mark.parametrize("name", TABLES)
def test_respaced_times_are_deepfloyds(name: str) -> None:
    """Their timestep k, counted from 0, is entry k + 1 here, where entry 0 is the clean image."""
    table, sections = TABLES[name]
    expected = [*(int(entry) + 1 for entry in table.split()), 0]
    times = RespacedGrid(sections=sections).times(len(expected) - 1)
    np.testing.assert_allclose(times * 1000, expected, atol=1e-9)


def test_a_section_of_every_time_is_every_time() -> None:
    np.testing.assert_allclose(RespacedGrid(sections=(40,), num_timesteps=40).times(40), np.arange(40, -1, -1) / 40)
    # 10 in 3 sections are 4, 3 and 3; one of a section is its first.
    np.testing.assert_allclose(RespacedGrid(sections=(1, 3, 2), num_timesteps=10).times(6) * 10, [10, 8, 7, 6, 5, 1, 0])


def test_uniform_times() -> None:
    np.testing.assert_allclose(UniformGrid().times(4), [1.0, 0.75, 0.5, 0.25, 0.0], atol=1e-15)


@pytest.mark.parametrize("num", [2, 9, 18])
def test_edm_times_are_edms(num: int) -> None:
    """sigma_i of arXiv 2206.00364, eq. 5: from sigma_max down to sigma_min, which the last call sees."""
    i = np.arange(num)
    sigmas = (80 ** (1 / 7) + i / (num - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    weights = ConstantGuidance()
    table = make_step_table(EDMSchedule(), EDMGrid(), num, 1.0, weights)
    np.testing.assert_allclose(np.exp(-table.log_snr_t / 2), sigmas, rtol=1e-4)
    np.testing.assert_allclose(np.exp(-table.log_snr_s[:-1] / 2), sigmas[1:], rtol=1e-4)
    np.testing.assert_allclose(EDMGrid().times(3, 0.5), [0.5, 0.25, 0.0, 0.0], atol=1e-15)


def test_no_call_lies_before_the_last_time() -> None:
    grid = UniformGrid(t_last=0.3)
    np.testing.assert_allclose(grid.times(8), [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.0], atol=1e-15)
    np.testing.assert_allclose(grid.times(2), [1.0, 0.5, 0.0], atol=1e-15)
    np.testing.assert_allclose(grid.times(3, 0.5), [0.5, 0.4, 0.3, 0.0], atol=1e-15)
    np.testing.assert_array_equal(grid.times(3, 0.2), [0.2, 0.0])
    for t_last in (-0.1, 1.0):
        with pytest.raises(UserError, match="t_last"):
            UniformGrid(t_last=t_last)


def test_a_later_start_leaves_out_the_times_before_it() -> None:
    np.testing.assert_allclose(UniformGrid().times(3, 0.6), [0.6, 0.4, 0.2, 0.0], atol=1e-15)
    grid = RespacedGrid(sections=(7, 4, 2, 1, 2, 4, 7))
    whole = grid.times(27)
    for start in (9, 14):
        np.testing.assert_array_equal(grid.times(27, float(whole[start])), whole[start:])
        np.testing.assert_array_equal(grid.times(27, float(whole[start]) + 4e-4), whole[start:])


def test_lists_as_configs_give_them_are_taken() -> None:
    grid = RespacedGrid(sections=[2, 3])
    assert grid == RespacedGrid(sections=(2, 3))
    assert hash(grid) == hash(RespacedGrid(sections=(2, 3)))


def test_impossible_grids_are_refused() -> None:
    for sections, message in (((), "sections is empty"), ((3, 0), r"sections \(0\) must be an integer >= 1")):
        with pytest.raises(UserError, match=message):
            RespacedGrid(sections=sections)
    with pytest.raises(UserError, match="asks for 6 times of a section that has 5"):
        RespacedGrid(sections=(5, 6), num_timesteps=10)
    with pytest.raises(UserError, match=r"num_steps \(26\) must be the sum .* 27"):
        RespacedGrid(sections=(7, 4, 2, 1, 2, 4, 7)).times(26)


def test_more_steps_than_discrete_times_are_refused() -> None:
    check_steps(DiscreteSchedule(), 1000)
    check_steps(CosineSchedule(), 5000)
    with pytest.raises(UserError, match="1000 discrete times"):
        check_steps(DiscreteSchedule(), 1001)
