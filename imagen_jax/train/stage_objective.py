"""Objective of ordinary training: a stage's diffusion loss with its null text, averaged by log-SNR too."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.models.denoiser import Conditioning
from imagen_jax.stage.spec import Stage
from imagen_jax.train.objective import Batch, Mean, Objective
from imagen_jax.train.state import abstract_params
from imagen_jax.typing import Array, Float, Int, PRNGKeyArray, PyTree

# Inner edges of the log-SNR buckets; the outermost buckets are open.
LOG_SNR_EDGES = (-6.0, -3.0, 0.0, 3.0, 6.0)
BUCKET_NAMES = tuple(
    f"{low:g}..{high:g}" for low, high in zip((-math.inf, *LOG_SNR_EDGES), (*LOG_SNR_EDGES, math.inf), strict=True)
)
BY_LOG_SNR, BY_SOURCE = "loss_by_log_snr", "loss_by_source"


def bucket_sums(
    per_example_loss: Float[Array, " b"], bucket: Int[Array, " b"], num_buckets: int
) -> tuple[Float[Array, " buckets"], Float[Array, " buckets"]]:
    """Sum of the losses and number of examples in each bucket: what averages are made of."""
    member = jax.nn.one_hot(bucket, num_buckets, dtype=jnp.float32)
    # Not a matmul: a non-finite loss would spoil the buckets it is not in (0 * inf).
    return jnp.where(member > 0, per_example_loss[:, None], 0.0).sum(0), member.sum(0)


def log_snr_bucket(log_snr: Float[Array, " b"]) -> Int[Array, " b"]:
    """Number of each log-SNR's bucket among BUCKET_NAMES."""
    return jnp.searchsorted(jnp.asarray(LOG_SNR_EDGES), log_snr, side="right")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageObjective(Objective):
    """Trains a stage on its own loss.

    Args:
      stage: network and diffusion.
      null: the null text that `stage.null_text` names, one row, a constant of the step; None is zeros.
      size: height and width of x0 in its batches, which then have their framing (`data.sized_pictures`); None: squares.
      text_dtype: of the text in a batch: float32, or bfloat16 of a store that holds no more.
      sources: names of the sources of a mixture, by which the loss is averaged too; a batch then holds their numbers.
      loss_weights: factor of each source's loss; empty: all 1.
    """

    stage: Stage
    null: Conditioning | None = None
    text_dtype: np.dtype = np.dtype(np.float32)
    sources: tuple[str, ...] = ()
    loss_weights: tuple[float, ...] = ()
    size: tuple[int, int] | None = None

    @property
    def metrics(self) -> Mapping[str, tuple[str, ...]]:
        """The loss by log-SNR and, of a mixture, by source."""
        return {BY_LOG_SNR: BUCKET_NAMES} | ({BY_SOURCE: self.sources} if self.sources else {})

    def init(self, rng: PRNGKeyArray) -> PyTree:
        """Fresh parameters of the network, boxed with their logical axis names."""
        return self.stage.init(rng)

    def network_spec(self, mesh: Mesh) -> PyTree:
        """Shapes, dtypes and shardings of the network's parameters."""
        return abstract_params(self.stage.init, mesh)

    def network_params(self, params: PyTree, frozen: PyTree) -> PyTree:
        """The network's parameters, with which the stage draws.

        Args:
          params: those that are trained, or their average.
          frozen: those that are not.
        """
        return params

    def batch_spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Images, text and, for super-resolution, low-resolution images: see `Stage.loss`."""
        stage, b = self.stage, batch_size
        height, width = self.size or (stage.image_size, stage.image_size)
        spec = {
            "x0": jax.ShapeDtypeStruct((b, height, width, 3), jnp.float32),
            "text": jax.ShapeDtypeStruct((b, stage.max_text_length, stage.text_embed_dim), self.text_dtype),
            "text_mask": jax.ShapeDtypeStruct((b, stage.max_text_length), jnp.bool_),
        }
        if stage.low_res_size is not None:
            small = (height // stage.scale, width // stage.scale)
            spec["low_res"] = jax.ShapeDtypeStruct((b, *small, 3), jnp.float32)
        if self.size is not None:
            spec["framing"] = jax.ShapeDtypeStruct((b, 6), jnp.float32)
        if self.sources:
            spec["source"] = jax.ShapeDtypeStruct((b,), jnp.int32)
        return spec

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, rng: PRNGKeyArray, mesh: Mesh | None = None
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """Mean of `diffusion_loss`, each source's by its weight, and its averages by log-SNR and source."""
        mean, aux = self.diffusion_loss(params, frozen, batch, rng, mesh)
        losses, bucket = aux["per_example_loss"], log_snr_bucket(aux["log_snr"])
        means = {BY_LOG_SNR: Mean(*bucket_sums(losses, bucket, len(BUCKET_NAMES)))}
        if self.loss_weights:
            mean = (losses * jnp.asarray(self.loss_weights, jnp.float32)[batch["source"]]).mean()
        if self.sources:
            means[BY_SOURCE] = Mean(*bucket_sums(losses, batch["source"], len(self.sources)))
        return mean, means

    def diffusion_loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, rng: PRNGKeyArray, mesh: Mesh | None = None
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Arguments of `Objective.loss`, results of `Stage.loss`."""
        return self.stage.loss(params, batch, rng, self.null, mesh)
