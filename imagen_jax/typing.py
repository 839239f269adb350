"""Array types and the one glossary of axis letters.

    b batch            h, w  height and width of an image or feature map
    c channels         n     tokens of a caption (padded)
    d width of a token embedding or of the pooled text
    s spatial positions (h * w flattened)      k attention heads      e width of one head

Images are NHWC float32 in [-1, 1]; time t is in [0, 1] with 1 = noise; log_snr = ln(alpha² / sigma²).
"""

from typing import Any

from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray, UInt8

PyTree = Any

__all__ = ["Array", "Bool", "Float", "Int", "PRNGKeyArray", "PyTree", "UInt8"]
