"""Measures of a cascade and of images: evaluators, extractors of features, metrics on features."""

from typing import Any

__all__ = ["load_extractor"]


def __getattr__(name: str) -> Any:
    # The feature networks load only when they are used: the report reads this room too.
    if name == "load_extractor":
        from imagen_jax.evals.features.loading import load_extractor

        return load_extractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
