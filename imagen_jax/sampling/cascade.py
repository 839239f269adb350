"""The cascade: captions → base image → super-resolution → … → final image.

A cascade directory holds one run directory a stage (base/, sr/, …); a stage's run directory alone is a cascade of
one. Each stage is rebuilt from the operative config in its newest checkpoint, with the averaged parameters.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import gin_config
from imagen_jax.errors import UserError
from imagen_jax.models.denoiser import Conditioning, drop_text
from imagen_jax.progress import Progress
from imagen_jax.sampling.images import to_uint8
from imagen_jax.sampling.stage_sampler import SamplingConfig, image_keys, sample_stage
from imagen_jax.sharding import rules
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.train import checkpoints
from imagen_jax.train.config import TrainConfig
from imagen_jax.typing import Float, PyTree, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedStage:
    """A trained stage.

    Args:
      stage: network and diffusion.
      sampling: its settings, as configured in its run.
      params: averaged parameters.
      text: the text encoder it was trained with.
      config_hash: first digits of the digest of its operative config.
    """

    stage: Stage
    sampling: SamplingConfig
    params: PyTree
    text: TextConfig
    config_hash: str

    @classmethod
    def load(cls, model_dir: str) -> "LoadedStage":
        """Rebuilds a stage from its newest checkpoint."""
        step = checkpoints.latest_step(model_dir)
        text = checkpoints.load_config_text(model_dir, step)
        path = checkpoints.checkpoint_dir(model_dir, step or 0)
        config = gin_config.load(TrainConfig, [str(path / "config.gin")])
        params = checkpoints.load_params(model_dir, step)
        abstract = jax.eval_shape(config.stage.init, jax.random.key(0))
        checkpoints.check_same({"params": rules.unbox(abstract)}, {"params": params}, path)
        return cls(
            stage=config.stage,
            sampling=config.sampling,
            params=params,
            text=config.text,
            config_hash=hashlib.sha256(text.encode()).hexdigest()[:12],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cascade:
    """Stages in the order they run, and the text encoder they share."""

    stages: tuple[LoadedStage, ...]
    encoder: TextEncoder

    @classmethod
    def load(cls, directory: str) -> "Cascade":
        """Loads a cascade directory, or the run directory of one stage.

        Raises:
          UserError: no checkpoint there, stages that do not fit each other, or another text encoder a stage.
        """
        if checkpoints.latest_step(directory) is not None:
            found = [LoadedStage.load(directory)]
        else:
            names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
            runs = [os.path.join(directory, name) for name in names]
            found = [LoadedStage.load(run) for run in runs if checkpoints.latest_step(run) is not None]
        if not found:
            raise UserError(
                f"no trained stage under {directory!r}: expected checkpoints/checkpoint_N in it or in its "
                "sub-directories (base/, sr/, …); train first, or check the path"
            )
        found.sort(key=lambda loaded: loaded.stage.image_size)
        for below, above in zip(found, found[1:], strict=False):
            if above.stage.low_res_size != below.stage.image_size:
                raise UserError(
                    f"stage {above.stage.name!r} expects {above.stage.low_res_size}-pixel images below it, but stage "
                    f"{below.stage.name!r} draws {below.stage.image_size}; the cascade directory must hold one chain"
                )
            if above.text != below.text:
                raise UserError(
                    f"stages {below.stage.name!r} and {above.stage.name!r} were trained with different text encoders: "
                    f"{below.text} and {above.text}; retrain one of them"
                )
        return cls(stages=tuple(found), encoder=TextEncoder(found[0].text))

    @property
    def config_hash(self) -> str:
        """One word that changes when the config of any stage does."""
        return "-".join(loaded.config_hash for loaded in self.stages)

    def configure(self, change: Callable[[Stage, SamplingConfig], SamplingConfig]) -> "Cascade":
        """The same cascade with every stage's sampling settings passed through `change`."""
        stages = [dataclasses.replace(one, sampling=change(one.stage, one.sampling)) for one in self.stages]
        return dataclasses.replace(self, stages=tuple(stages))

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        low_res: Float[np.ndarray, "b h w 3"] | None = None,
        negative_prompts: Sequence[str] | None = None,
        batch_size: int = 64,
        label: str = "sample",
    ) -> list[UInt8[np.ndarray, "b _h _w 3"]]:
        """Draws one image a prompt through every stage.

        Image i depends on the seed, i and prompt i alone, whatever the batch size.

        Args:
          prompts: captions; "" is each stage's null text and draws unconditionally.
          seed: of the noise.
          low_res: needed where the first stage is a super-resolution stage: its inputs, in [-1, 1].
          negative_prompts: what guidance leads away from in place of the null text, one a prompt; "" is the null text.
          batch_size: images drawn at a time; the last batch is filled up so that nothing compiles twice.
          label: what the progress shows.

        Returns:
          For each stage, its images as uint8.
        """
        if not prompts:
            raise UserError("no prompts to draw; give at least one caption")
        first = self.stages[0].stage
        if (first.low_res_size is None) != (low_res is None):
            raise UserError(
                f"the first stage ({first.name!r}) has low_res_size {first.low_res_size}: "
                f"low-resolution images are {'not taken' if first.low_res_size is None else 'needed'}"
            )
        if low_res is not None and low_res.shape[0] != len(prompts):
            raise UserError(f"low_res has {low_res.shape[0]} images for {len(prompts)} prompts; give one each")
        if negative_prompts is not None and len(negative_prompts) != len(prompts):
            raise UserError(f"{len(negative_prompts)} negative prompts for {len(prompts)} prompts; give one each")
        if negative_prompts is not None and all(one.sampling.guidance_weight == 1.0 for one in self.stages):
            raise UserError("negative prompts do nothing at guidance_weight 1; set a larger one, e.g. 3")
        batch_size = min(batch_size, len(prompts))
        drawn: list[list[np.ndarray]] = [[] for _ in self.stages]
        with Progress(len(prompts), label, "image") as progress:
            for start in range(0, len(prompts), batch_size):
                ids = np.arange(start, start + batch_size)
                rows = np.minimum(ids, len(prompts) - 1)
                count = min(batch_size, len(prompts) - start)
                chosen = [prompts[i] for i in rows]
                avoided = [""] * len(rows) if negative_prompts is None else [negative_prompts[i] for i in rows]
                below = None if low_res is None else jnp.asarray(low_res[rows])
                for number, one in enumerate(self.stages):
                    keys = image_keys(seed, jnp.asarray(ids))
                    keys = jax.vmap(lambda key, number=number: jax.random.fold_in(key, number))(keys)
                    cond, null = (self._encode(one.stage, captions) for captions in (chosen, avoided))
                    text = (cond.text, cond.text_mask)
                    below = sample_stage(one.stage, one.sampling, one.params, keys, *text, below, null)
                    drawn[number].append(to_uint8(np.asarray(below))[:count])
                progress.update(count)
        return [np.concatenate(parts) for parts in drawn]

    def _encode(self, stage: Stage, captions: Sequence[str]) -> Conditioning:
        """Text of each caption, and of an empty one what the stage was trained with in its place."""
        text, text_mask = self.encoder.encode(captions)
        cond = Conditioning(text=jnp.asarray(text), text_mask=jnp.asarray(text_mask))
        if stage.null_text == "empty":
            return cond
        return drop_text(cond, jnp.asarray([bool(caption.strip()) for caption in captions]))
