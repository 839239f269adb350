"""Plans as they were, one JSON file each: what was asked for, and the memory, work and collectives found.

After a change that is meant to alter them, with the libtpu of `make plan-test` first on the path:
PYTHONPATH=.venv/golden-libtpu python -m tests.tpu.golden_plans tests/golden/plans/NAME.json …
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from imagen_jax.main import main

# What made the files: memory differs by a fifth from one compiler to another.
JAX, LIBTPU = "0.10.2", "0.0.51"
ROOT = Path(__file__).parents[1] / "golden" / "plans"
KEPT = ("fits", "peak_hbm_gib", "state_gib", "num_params", "model_flops", "hardware_flops", "collective_bytes")


def planned(flags: list[str]) -> dict[str, Any]:
    """What `imagen_jax plan` writes for `flags`."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "plan.json"
        code = main(["plan", *flags, f"--json={path}"])
        found = json.loads(path.read_text())
    assert code == (0 if found["fits"] else 2)
    return found


def write(path: Path) -> None:
    """Plans again what a file asks for, and keeps what is found."""
    golden = json.loads(path.read_text())
    found = planned(golden["flags"])
    kept = {name: found[name] for name in KEPT} | {"sampler_peak_hbm_gib": found.get("sampler", {}).get("peak_hbm_gib")}
    path.write_text(json.dumps({"flags": golden["flags"], "found": kept}, indent=1) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write(Path(name))
