"""Preview pictures during training: the same captions and the same noise every time."""

import dataclasses
import os
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from imagen_jax.files import AnyPath
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.sampling.images import write_png
from imagen_jax.sampling.preview import PreviewRows, draw_preview
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.train.hooks import Hook, StepInfo
from imagen_jax.typing import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewHook(Hook):
    """Draws DIRECTORY/step_N.png of the averaged parameters.

    Args:
      stage: what is trained.
      sampling: how it is sampled.
      mesh: where its parameters lie.
      rows: what is drawn.
      every: steps between previews, >= 1.
      seed: seed of the noise.
      directory: where the pictures go.
      null: the stage's null text; None is zeros.
      network_params: the network's parameters from the averaged ones.
      show: also given each picture, as (step, tag, PNG, height, width); e.g. `MetricWriter.image`.
    """

    stage: Stage
    sampling: SamplingConfig
    mesh: Mesh
    rows: PreviewRows
    every: int
    seed: int
    directory: AnyPath
    null: Conditioning | None = None
    network_params: Callable[[PyTree], PyTree] = lambda params: params
    show: Callable[[int, str, bytes, int, int], None] | None = None

    def wants(self, step: int) -> bool:
        """True every `every` steps."""
        return step % self.every == 0

    def before_step(self, info: StepInfo) -> None:
        """Draws and writes the picture; all processes draw, the first one writes."""
        image = draw_preview(
            self.stage,
            self.network_params(info.state.ema_params),
            self.rows,
            mesh=self.mesh,
            sampling=self.sampling,
            seed=self.seed,
            null=self.null,
        )
        if jax.process_index() == 0:
            path = self.directory / f"step_{info.step}.png"
            write_png(os.fspath(path), image, {"step": info.step, "captions": list(self.rows.captions)})
            if self.show is not None:
                self.show(info.step, "samples", path.read_bytes(), image.shape[0], image.shape[1])
