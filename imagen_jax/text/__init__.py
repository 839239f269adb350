"""Captions to token embeddings: tokenizers, frozen encoders, the embedding store."""

from imagen_jax.text.weights.pretrained import load_encoder

__all__ = ["load_encoder"]
