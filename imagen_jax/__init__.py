"""Train and sample Imagen-style text-to-image cascades.

from imagen_jax import Cascade
*_, images = Cascade.load("runs/demo").sample(["a red cube", "a blue ring"])
"""

from typing import Any

__all__ = ["Cascade"]


def __getattr__(name: str) -> Any:
    # The package's rooms load only when they are used: a mode's --help takes no second.
    if name == "Cascade":
        from imagen_jax.sampling.cascade import Cascade

        return Cascade
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
