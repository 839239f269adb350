"""Classifier-free guidance (paper section 2.2):  eps~ = w eps(z, c) + (1 - w) eps(z),  w = 1 is off.

Applied to x0_hat it is the same rule, since x0_hat is affine in eps_hat and the two weights sum to one.
"""

from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float


def guide(
    cond: Float[Array, "b *s"], null: Float[Array, "b *s"], guidance_weight: float | Float[Array, ""]
) -> Float[Array, "b *s"]:
    """Extrapolates from the unconditional prediction through the conditional one; w = 1 gives `cond`."""
    return null + guidance_weight * (cond - null)


def check_guidance_weight(guidance_weight: float) -> None:
    """Raises UserError for a negative weight; 0 is unconditional, 1 conditional without guidance."""
    if guidance_weight < 0:
        raise UserError(
            f"guidance_weight ({guidance_weight}) must be >= 0: 0 is unconditional, 1 is off, the paper sweeps 1 to 18"
        )
