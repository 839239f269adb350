"""Networks of other houses: DeepFloyd IF's stages from diffusers folders, and back."""

from imagen_jax.interop.diffusers_folder import save_if_stage
from imagen_jax.interop.if_stage import IFStage, load_if_stage

__all__ = ["IFStage", "load_if_stage", "save_if_stage"]
