"""Points of a sweep as a tree by stage: what two points share below a stage is drawn once.

A node is one stage with its settings on what a node of the stage below drew. Its key is the digest of all that its
images depend on: checkpoint, settings, prompts, and the key below. A changed setting makes new keys from its stage up
and leaves those below as they are.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.evals.drawn_images import StageSettings, plain_settings, with_settings
from imagen_jax.evals.sweeps.prompts import PromptList
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.stage.sampler_names import SAMPLERS
from imagen_jax.stage.sampling_config import SamplingConfig

AXES = tuple(field.name for field in dataclasses.fields(StageSettings))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageGrid:
    """Values to try in one stage; every combination of them is. An empty axis is as configured.

    Args:
      stage: its name, such as "base".
      guidance_weight, num_steps, sampler, thresholding, aug_level: see `StageSettings`.
    """

    stage: str
    guidance_weight: tuple[float, ...] = ()
    num_steps: tuple[int, ...] = ()
    sampler: tuple[str, ...] = ()
    thresholding: tuple[str, ...] = ()
    aug_level: tuple[float | int, ...] = ()

    def __post_init__(self) -> None:
        for name in AXES:
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, list | tuple):
                raise UserError(f"StageGrid.{name} ({values!r}) must be a tuple of values, e.g. ({values!r},)")
            if name in ("guidance_weight", "aug_level"):
                values = [float(value) for value in values]  # 2 and 2.0 are one setting, and one key.
            object.__setattr__(self, name, tuple(dict.fromkeys(values)))
        if not any(getattr(self, name) for name in AXES):
            raise UserError(f"StageGrid of {self.stage!r} is empty; give values for one of {', '.join(AXES)}")

    def settings(self) -> list[StageSettings]:
        """Every combination, the last axis running fastest."""
        axes = [getattr(self, name) or (None,) for name in AXES]
        return [StageSettings(**dict(zip(AXES, values, strict=True))) for values in itertools.product(*axes)]


@dataclasses.dataclass(frozen=True)
class Node:
    """Images of one stage.

    Attributes:
      key: stage's name and first digits of the digest.
      cascade: the stage alone, with its settings.
      number: of the stage in its cascade.
      below: what it draws from; None: noise alone.
    """

    key: str
    cascade: Cascade
    number: int
    below: "Node | None"


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting of all stages.

    Attributes:
      settings: of each stage by name: the axes' values as they are drawn.
      node: of the last stage.
    """

    settings: dict[str, dict[str, Any]]
    node: Node


@dataclasses.dataclass(frozen=True)
class Plan:
    """Points in the order of the grids, and the nodes that they need, those below first."""

    points: tuple[Point, ...]
    nodes: tuple[Node, ...]


def build_plan(cascade: Cascade, grids: Sequence[StageGrid], prompts: PromptList) -> Plan:
    """Lays out every combination of the grids.

    Args:
      cascade: the stages, as configured.
      grids: at most one a stage; a stage without one is drawn as configured.
      prompts: what is drawn.

    Raises:
      UserError: there is no grid, two of one stage, a stage that the cascade has not, or settings that do not fit it;
        nothing is drawn then.
    """
    if not grids:
        raise UserError("the sweep has no grids; give one, e.g. (@base/plan.StageGrid(),)")
    by_stage = {grid.stage: grid for grid in grids}
    if len(by_stage) < len(grids):
        raise UserError("two grids of a sweep name one stage; put their values into one")
    unknown = [name for name in by_stage if name not in cascade.names]
    if unknown:
        raise UserError(f"a grid names stage {unknown[0]!r}, which the cascade has not: {', '.join(cascade.names)}")
    nodes: dict[str, Node] = {}
    points = []
    choices = [by_stage[name].settings() if name in by_stage else [StageSettings()] for name in cascade.names]
    for combination in itertools.product(*choices):
        node: Node | None = None
        settings = {}
        for number, (name, chosen) in enumerate(zip(cascade.names, combination, strict=True)):
            alone = with_settings(cascade.only(name, name), {name: chosen})
            made = Node(_key(alone, prompts, node), alone, number, node)
            node = nodes.setdefault(made.key, made)
            settings[name] = _axes(alone.stages[0].sampling)
        assert node is not None
        points.append(Point(settings, node))
    return Plan(tuple(points), tuple(sorted(nodes.values(), key=lambda one: one.number)))


def _key(alone: Cascade, prompts: PromptList, below: Node | None) -> str:
    (stage,) = alone.stages
    facts = {
        "checkpoint": stage.checkpoint,
        "config_hash": stage.config_hash,
        "settings": plain_settings(stage.sampling),
        "prompts": prompts.digest,
        "below": None if below is None else below.key,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{stage.stage.name}-{digest[:16]}"


def _axes(sampling: SamplingConfig) -> dict[str, Any]:
    values = {name: getattr(sampling, name) for name in AXES}
    known = [name for name, sampler in SAMPLERS.items() if sampler == sampling.sampler]
    return {**values, "sampler": known[0] if known else repr(sampling.sampler)}
