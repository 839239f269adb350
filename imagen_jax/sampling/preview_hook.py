"""Preview pictures during training: the same captions and the same noise every time."""

import contextlib
import os
from pathlib import Path

import jax
import numpy as np

from imagen_jax.data.pipeline import BatchIterator
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.sampling.images import write_png
from imagen_jax.sampling.preview import draw_preview
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.train.config import PreviewConfig, TrainConfig
from imagen_jax.train.metrics import MetricWriter
from imagen_jax.typing import PyTree


class PreviewHook:
    """Draws MODEL_DIR/samples/step_N.png.

    Args:
      config: the run.
      previews: what is drawn, and when.
      encoder: encodes the captions.
      writer: the picture is shown in TensorBoard too.
      null: the stage's null text; None is zeros.
    """

    def __init__(
        self,
        config: TrainConfig,
        previews: PreviewConfig,
        encoder: TextEncoder,
        writer: MetricWriter,
        null: Conditioning | None = None,
    ):
        self._config, self._previews, self._writer, self._null = config, previews, writer, null
        self._low_res: np.ndarray | None = None
        self._mesh = config.mesh.build()
        if previews.captions and config.stage.low_res_size is None:
            self._text, self._text_mask = encoder.encode(previews.captions)
        else:
            batches = BatchIterator(
                config.data, batch_size=previews.num_images, seed=config.seed, start_step=0, encoder=encoder
            )
            with contextlib.closing(batches):
                first = next(iter(batches))
            self._text, self._text_mask, self._low_res = (
                first["text"],
                first["text_mask"],
                first.get("low_res"),
            )

    def draw(self, step: int, ema_params: PyTree) -> None:
        """Draws the picture of the averaged parameters after `step` updates."""
        image = draw_preview(
            self._config.stage,
            ema_params,
            self._text,
            self._text_mask,
            self._low_res,
            mesh=self._mesh,
            sampling=self._config.sampling,
            seed=self._previews.seed,
            null=self._null,
        )
        if jax.process_index() == 0:
            path = Path(self._config.model_dir) / "samples" / f"step_{step}.png"
            write_png(os.fspath(path), image, {"step": step, "captions": list(self._previews.captions)})
            self._writer.image(step, "samples", path.read_bytes(), image.shape[0], image.shape[1])
