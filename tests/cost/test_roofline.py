"""Times of a step against cases worked out by hand."""

import pytest

from imagen_jax.cost.chips import Chip
from imagen_jax.cost.roofline import Work, days, mfu, roofline

CHIP = Chip(
    peak_flops=100.0,
    hbm_bytes_per_s=50.0,
    hbm_limit_bytes=1.0,
    ici_link_bytes_per_s=5.0,
    ici_links=4,
    dcn_bytes_per_s=2.0,
)


def work(**changes: float) -> Work:
    """4 s of compute, 3 s of HBM, 2 s of ICI and 1 s of DCN."""
    values = {"model_flops": 300.0, "hardware_flops": 400.0, "hbm_bytes": 150.0, "ici_bytes": 20.0, "dcn_bytes": 2.0}
    return Work(**values | changes)


def test_each_resource_has_its_time():
    line = roofline(work(), CHIP)
    assert line.times() == {"compute": 4.0, "hbm": 3.0, "ici": 2.0, "dcn": 1.0}
    assert (line.bound, line.fastest_s, line.slowest_s) == ("compute", 4.0, 10.0)


@pytest.mark.parametrize(
    ("changes", "bound", "fastest"),
    [({"hbm_bytes": 500.0}, "hbm", 10.0), ({"ici_bytes": 100.0}, "ici", 10.0), ({"dcn_bytes": 20.0}, "dcn", 10.0)],
)
def test_the_slowest_resource_bounds(changes, bound, fastest):
    line = roofline(work(**changes), CHIP)
    assert (line.bound, line.fastest_s) == (bound, fastest)


def test_mfu_counts_the_models_flops_alone():
    assert mfu(300.0, 4.0, CHIP) == 0.75
    assert mfu(300.0, 10.0, CHIP) == 0.3


def test_days():
    assert days(0.864, 2_500_000) == 25.0
