"""The sampling settings of every stage, as the flags of `imagen_jax sample` change them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from imagen_jax.commands.parts.sample_options import SampleOptions
from imagen_jax.errors import UserError
from imagen_jax.stage.sampler_names import sampler_settings
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage


def changed_settings(
    stage: Stage, sampling: SamplingConfig, stages: Sequence[Stage], options: SampleOptions
) -> SamplingConfig:
    """Replaces what the flags name in one stage's settings.

    Args:
      stage: one of the stages.
      sampling: its settings.
      stages: all that draw, in order.
      options: the flags.

    Raises:
      UserError: a list has not one value for each stage, or a value is out of range.
    """
    changes: dict[str, Any] = options.given("thresholding", "percentile")
    above = [one for one in stages if one.low_res_size is not None]
    # A list has one value for each of these stages; a single value is for those of the last column.
    for name, listed, single in (
        ("num_steps", stages, stages),
        ("guidance_weight", stages, [one for one in stages if one.low_res_size is None]),
        ("aug_level", above, above),
    ):
        value = getattr(options, name)
        if isinstance(value, tuple):
            if len(value) != len(listed):
                names = ", ".join(one.name for one in listed)
                raise UserError(f"--{name} has {len(value)} values for the stages {names}; give one, or one for each")
            if stage in listed:
                changes[name] = value[listed.index(stage)]
        elif value is not None and stage in single:
            changes[name] = value
    if options.sampler is not None:
        changes |= sampler_settings(options.sampler)
    if options.tile_size is not None:
        changes["tile_size"] = options.tile_size
        changes["tile_overlap"] = options.tile_size // 4 if options.tile_overlap is None else options.tile_overlap
    return dataclasses.replace(sampling, **changes)
