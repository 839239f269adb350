"""Networks of other houses: DeepFloyd IF's stages from diffusers folders."""

from imagen_jax.interop.if_stage import IFStage, load_if_stage

__all__ = ["IFStage", "load_if_stage"]
