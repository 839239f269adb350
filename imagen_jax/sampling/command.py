"""`imagen_jax sample`: captions to PNG files."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import enlarge, grid, write_png
from imagen_jax.sampling.stage_sampler import SamplingConfig
from imagen_jax.stage import Stage


def run(
    directory: str,
    prompts: Sequence[str],
    *,
    output: str,
    guidance_weight: float | None = None,
    aug_level: float | None = None,
    num_steps: int | None = None,
    negative_prompt: str | None = None,
    seed: int = 0,
    stage: str | None = None,
    overwrite: bool = False,
) -> None:
    """Draws every prompt and writes OUTPUT/NNNNN.png, OUTPUT/NNNNN_STAGE.png of the stages below, and OUTPUT.png.

    Args:
      directory: cascade directory, or run directory of one stage.
      prompts: captions.
      output: folder for the images; OUTPUT.png beside it shows them all.
      guidance_weight: of the base stage; None keeps every stage's own setting.
      aug_level: of the super-resolution stages; None keeps their own.
      num_steps: of every stage; None keeps their own.
      negative_prompt: what guidance leads every image away from; None is the null text.
      seed: of the noise.
      stage: stop after the stage of this name.
      overwrite: whether images that are already there may be replaced.

    Raises:
      UserError: nothing trained there, an unknown stage, or images in the way.
    """
    planned = [os.path.join(output, f"{i:05d}.png") for i in range(len(prompts))]
    in_the_way = [path for path in planned if os.path.exists(path)]
    if in_the_way and not overwrite:
        raise UserError(
            f"{len(in_the_way)} images exist already, the first is {in_the_way[0]}; "
            "choose another --output or add --overwrite"
        )
    cascade = _up_to(Cascade.load(directory), stage)

    def change(one: Stage, sampling: SamplingConfig) -> SamplingConfig:
        changes: dict[str, Any] = {}
        if num_steps is not None:
            changes["num_steps"] = num_steps
        if guidance_weight is not None and one.low_res_size is None:
            changes["guidance_weight"] = guidance_weight
        if aug_level is not None and one.low_res_size is not None:
            changes["aug_level"] = aug_level
        return dataclasses.replace(sampling, **changes)

    cascade = cascade.configure(change)
    avoided = None if negative_prompt is None else [negative_prompt] * len(prompts)
    images = cascade.sample(prompts, seed=seed, negative_prompts=avoided, label=f"sample {directory}")
    names = [one.stage.name for one in cascade.stages]
    settings = {
        **({} if negative_prompt is None else {"negative_prompt": negative_prompt}),
        "seed": seed,
        "guidance_weight": [one.sampling.guidance_weight for one in cascade.stages],
        "num_steps": [one.sampling.num_steps for one in cascade.stages],
        "aug_level": [one.sampling.aug_level for one in cascade.stages],
        "stages": names,
        "config_hash": cascade.config_hash,
    }
    for i, (path, prompt) in enumerate(zip(planned, prompts, strict=True)):
        info = {"prompt": prompt, "index": i, **settings}
        for name, drawn in zip(names[:-1], images[:-1], strict=True):
            write_png(path.replace(".png", f"_{name}.png"), drawn[i], info)
        write_png(path, images[-1][i], info)
    final = list(images[-1])
    columns = min(8, math.ceil(math.sqrt(len(final))))
    sheet = enlarge(grid(final, columns), max(1, 128 // final[0].shape[0]))
    write_png(output.rstrip("/") + ".png", sheet, {"prompts": list(prompts), **settings})
    print(f"{len(final)} images in {output}, all of them in {output.rstrip('/')}.png")


def _up_to(cascade: Cascade, name: str | None) -> Cascade:
    if name is None:
        return cascade
    names = [one.stage.name for one in cascade.stages]
    if name not in names:
        raise UserError(f"no stage {name!r} in this cascade; it has {', '.join(names)}")
    return dataclasses.replace(cascade, stages=cascade.stages[: names.index(name) + 1])
