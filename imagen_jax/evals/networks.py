"""Networks that the metrics of a setting need, loaded from the weights that the user named."""

from collections.abc import Mapping, Sequence
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.evals.features.loading import load_extractor
from imagen_jax.evals.scoring import BATCH, find_metrics


def load_networks(metrics: Sequence[str], fields: Mapping[str, tuple[str, str | None]]) -> list[Any]:
    """Loads one network of each kind that the metrics take features of.

    Args:
      metrics: names of `scoring.METRICS`.
      fields: by kind, the setting's name and the path in it: {"clip": ("ImageScores.clip_path", "clip")}.

    Raises:
      UserError: a path is not given, or holds another network or a damaged one.
    """
    needed = find_metrics(metrics)
    made = []
    for kind, (field, path) in fields.items():
        users = ", ".join(name for name, one in needed.items() if one.kind == kind)
        if not users:
            continue
        found = load_extractor(path or "", batch_size=BATCH)
        if found.kind != kind:
            raise UserError(f"{field} ({path}) holds {found.kind}; expected {kind}, which {users} needs")
        made.append(found)
    return made
