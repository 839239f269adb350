"""Names of TPU slices."""

import importlib.util
import math

import jax
import pytest

from imagen_jax.cost import topologies
from imagen_jax.cost.chips import CHIPS, chip_of
from imagen_jax.errors import UserError


def chips(name: str) -> int:
    """Chips of the shape that a name is described by."""
    shape = topologies.describe(name)["topology_name"].split(":")[1]
    return math.prod(int(side) for side in shape.split("x"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("v4-8", 4), ("v4-512", 256), ("v4-2048", 1024), ("v5p-128", 64), ("v5e-8", 8), ("v6e-256", 256), ("tpu7x-8", 4)],
)
def test_names_count_cores_or_chips(name, expected):
    assert chips(name) == expected


def test_every_name_has_a_shape_and_a_chip():
    names = topologies.known_topologies()
    assert names[0] == "local" and len(names) == len(set(names)) == 1 + 3 * 9 + 2 * 8
    for name in names[1:]:
        generation, number = name.split("-")
        assert int(number) == chips(name) * (1 if generation in ("v5e", "v6e") else 2)
        assert generation in CHIPS


def test_one_chip_has_a_host_of_its_own():
    assert topologies.describe("v5e-1")["chips_per_host_bounds"] == (1, 1, 1)
    assert topologies.describe("v5e-8")["chips_per_host_bounds"] == (2, 2, 1)


def test_local_is_what_is_here():
    assert list(topologies.devices("local")) == jax.devices()


@pytest.mark.parametrize(
    ("name", "slices", "expected"),
    [
        ("v4-7", 1, r"topology \('v4-7'\) is not known; choose one of local, v4-8, v4-16"),
        ("v9-8", 1, "tpu7x-2048"),
        ("v4-8", 0, "must be an integer >= 1"),
        ("local", 2, "needs the name of a slice"),
    ],
)
def test_mistakes_are_told(name, slices, expected):
    with pytest.raises(UserError, match=expected):
        topologies.devices(name, slices)


def test_missing_compiler_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'jax\[tpu\]=={jax.__version__}'"):
        topologies.devices("v4-8")


@pytest.mark.parametrize(
    ("kind", "generation"),
    [("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("TPU7x", "tpu7x")],
)
def test_device_kinds(kind, generation):
    assert chip_of(kind) is CHIPS[generation]


def test_a_cpu_has_no_figures():
    assert chip_of(jax.devices()[0].device_kind) is None


def test_tpu7x_shares_its_chip_between_two_devices():
    # 2307 TFLOP/s, 7380 GB/s and six links of 100 GB/s each way are a chip's.
    chip = CHIPS["tpu7x"]
    assert (2 * chip.peak_flops, 2 * chip.hbm_bytes_per_s, 2 * chip.ici_link_bytes_per_s) == (2307e12, 7380e9, 100e9)
