"""Plans do not grow unseen: memory, work and the bytes of every collective are those of the golden files."""

import importlib.metadata
import json
from pathlib import Path

import pytest

from tests.tpu.golden_plans import JAX, LIBTPU, ROOT, planned

SMALL, PODS = sorted(ROOT.glob("*.json")), sorted((ROOT / "pods").glob("*.json"))
# A tenth of a percent of the traffic is scalars and norms, which XLA may lay out anew.
SMALLEST_SHARE = 0.001
# Share of all parameters, in bfloat16, that one gather may bring.
LARGEST_GATHER = 0.1


@pytest.fixture(autouse=True)
def same_compiler() -> None:
    """The golden files tell about this code, so what traced and compiled them must be the same."""
    if (here := importlib.metadata.version("jax")) != JAX:
        pytest.skip(f"golden plans were traced by jax {JAX}, here is {here}: make plan-test with Python 3.11")
    here = importlib.metadata.version("libtpu")
    assert here == LIBTPU, f"golden plans were compiled by libtpu {LIBTPU}, here is {here}: make plan-test"


def _check(path: Path) -> None:
    golden = json.loads(path.read_text())
    found, kept = planned(golden["flags"]), golden["found"]
    for name in ("fits", "num_params", "model_flops"):
        assert found[name] == kept[name]
    for name in ("peak_hbm_gib", "state_gib", "hardware_flops"):
        assert found[name] == pytest.approx(kept[name], rel=0.03), name
    if kept["sampler_peak_hbm_gib"] is not None:
        assert found["sampler"]["peak_hbm_gib"] == pytest.approx(kept["sampler_peak_hbm_gib"], rel=0.03)
    # Kernels are gathered a few at a time, never the whole parameter set.
    assert found["largest_collective_bytes"].get("all-gather", 0) < LARGEST_GATHER * 2 * found["num_params"]
    here, there = (_flat(one["collective_bytes"]) for one in (found, kept))
    least = SMALLEST_SHARE * sum(there.values())
    for kind in here.keys() | there.keys():
        assert here.get(kind, 0) == pytest.approx(there.get(kind, 0), rel=0.03, abs=least), kind


def _flat(collective_bytes: dict[str, dict[str, float]]) -> dict[tuple[str, str], float]:
    return {(kind, axis): size for kind, axes in collective_bytes.items() for axis, size in axes.items()}


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_small_plans(path: Path) -> None:
    _check(path)


@pytest.mark.pods
@pytest.mark.parametrize("path", PODS, ids=lambda path: path.stem)
def test_plans_of_the_papers_runs(path: Path) -> None:
    _check(path)
