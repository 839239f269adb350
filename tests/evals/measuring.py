"""An evaluator that draws nothing: it tells what it was given."""

import dataclasses
import os

import jax
import numpy as np

from imagen_jax.files import write_json
from imagen_jax.sampling.cascade import Cascade


def total(params: object) -> float:
    """One number that other parameters do not have."""
    return float(sum(np.abs(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(params)))


@dataclasses.dataclass(frozen=True)
class Totals:
    """Writes totals.json: the total of each stage's parameters."""

    def evaluate(self, cascade: Cascade, run_dir: str) -> None:
        totals = {one.stage.name: total(one.weights.host) for one in cascade.stages}
        write_json(os.path.join(run_dir, "totals.json"), {"totals": totals})
