"""An invisible mark in the luminance of an image, found again after a crop and after JPEG.

The mark is a tile of side P = 128 pixels, repeated over the image. The tile is the sum of waves k of mid frequency,
each with the same amplitude and a phase θ_k that a key draws from [0, 2π). It is spread over the whole image, so that
each pixel changes by a few levels, more where the image is rough.

Detection needs no original and not where the image was cut out. What is smooth is taken from the luminance, the rest is
divided by its local spread and folded: summed over all tiles. Let F_k be the folded image's Fourier coefficients. An
image cut at (y, x) shifts the tile, which turns the phases; the statistic of a shift d is

    T(d) = Σ_k |F_k|^(1/2) cos(arg F_k − θ_k + 2π k·d / P) / sqrt(Σ_k |F_k| / 2),

for all P² shifts at once by one inverse Fourier transform. The square root keeps single strong waves of the image from
ruling it.

An image without the mark knows nothing of the key. For any such image, T(d) is a sum of independent Σ a_k cos U_k with
uniform U_k and Σ a_k² = 2. Since E exp(λ cos U) = I₀(λ) ≤ exp(λ²/4), Chernoff's bound gives P(T(d) ≥ t) ≤ exp(−t²/2),
and over all shifts P(max T ≥ t) ≤ P² exp(−t²/2). No assumption on images enters; chance is that of the key. A rate p of
false positives needs t = sqrt(2 ln(P² / p)): 6.86 for 10⁻⁶.
"""

import dataclasses
import functools
import hashlib
import math

import numpy as np
from scipy import ndimage

from imagen_jax.errors import UserError
from imagen_jax.typing import Float, UInt8

Image = UInt8[np.ndarray, "h w 3"]

# Side of the smallest image for which detection holds (docs/safety.md).
MIN_SIDE = 256
FALSE_POSITIVES = 1e-6
DEFAULT_KEY = "imagen_jax"
_TILE = 128
# Waves a tile that are used: JPEG drops faster ones, images are full of slower ones.
_SLOWEST, _FASTEST = 6.0, 36.0
# Root mean square of the mark, in levels of 255: where the image is flat, more per level of local spread, at most.
_FLAT, _ROUGH, _MOST = 1.2, 0.06, 3.0
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_WINDOW = 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
    """An answer to the question if an image has a mark.

    Args:
      score: largest T over all shifts.
      threshold: T from which on the mark is said to be there.
    """

    score: float
    threshold: float

    @property
    def found(self) -> bool:
        """Tells if the mark is there."""
        return self.score >= self.threshold


def embed(image: Image, key: str = DEFAULT_KEY) -> Image:
    """An image with the mark of a key.

    Args:
      image: of any size; below MIN_SIDE detection is not promised.
      key: who knows it can find the mark, and take it out.
    """
    tile = np.fft.irfft2(_waves(key), (_TILE, _TILE))
    tile /= tile.std()
    height, width = image.shape[:2]
    rows, columns = np.arange(height) % _TILE, np.arange(width) % _TILE
    luma = image.astype(np.float32) @ _LUMA
    strength = np.minimum(_FLAT + _ROUGH * _rough(luma)[1], _MOST)
    marked = image + (strength * tile[np.ix_(rows, columns)])[..., None]
    return np.clip(np.round(marked), 0, 255).astype(np.uint8)


def detect(image: Image, key: str = DEFAULT_KEY, false_positives: float = FALSE_POSITIVES) -> Detection:
    """Looks for the mark of a key, at any shift.

    Args:
      image: any image.
      key: of the mark.
      false_positives: bound of the rate at which images without a mark are said to have it, in (0, 1).

    Raises:
      UserError: the rate is none.
    """
    if not 0 < false_positives < 1:
        raise UserError(f"false_positives ({false_positives}) must be between 0 and 1, e.g. 1e-6")
    threshold = math.sqrt(2 * math.log(_TILE**2 / false_positives))
    fine, spread = _rough(image.astype(np.float32) @ _LUMA)
    # Flat parts have less to divide by: 1 is the least that rounding to levels leaves.
    folded = _folded(fine / (spread + 1.0))
    waves = _waves(key)
    found = np.fft.rfft2(folded)
    size = np.where(waves != 0, np.abs(found), 0.0)
    energy = float(size.sum()) / 2
    if energy < 1e-6:
        return Detection(score=0.0, threshold=threshold)
    root = np.sqrt(size)
    turned = root * np.where(root > 0, found / np.where(size > 0, size, 1.0), 0.0) * np.conj(waves)
    # irfft2 divides by the number of pixels, and counts each wave with its mirror image.
    sums = np.fft.irfft2(turned, (_TILE, _TILE)) * _TILE**2 / 2
    return Detection(score=float(sums.max()) / math.sqrt(energy), threshold=threshold)


@functools.lru_cache(maxsize=8)
def _waves(key: str) -> np.ndarray:
    """exp(i θ_k) in the layout of rfft2, 0 for waves that are not used; one of each pair of mirror images.

    Phases are the bytes of SHAKE-256, which no version of a library changes.
    """
    down = np.fft.fftfreq(_TILE, 1 / _TILE)[:, None]
    across = np.arange(_TILE // 2 + 1)[None]
    radius = np.hypot(down, across)
    # Column 0 holds both of a pair.
    used = (radius >= _SLOWEST) & (radius <= _FASTEST) & (across > 0)
    stream = hashlib.shake_256(b"imagen_jax watermark 1\0" + key.encode()).digest(4 * int(used.sum()))
    phases = np.frombuffer(stream, "<u4") * (2 * np.pi / 2**32)
    waves = np.zeros(used.shape, complex)
    waves[used] = np.exp(1j * phases)
    return waves


def _rough(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The luminance without its local mean, and the local spread of that, in levels."""
    fine = luma - ndimage.uniform_filter(luma, _WINDOW, mode="reflect")
    return fine, np.sqrt(np.maximum(ndimage.uniform_filter(fine * fine, _WINDOW, mode="reflect"), 0))


def _folded(values: Float[np.ndarray, "h w"]) -> np.ndarray:
    """The sum over all tiles, [P, P]."""
    height, width = values.shape
    padded = np.zeros((-(-height // _TILE) * _TILE, -(-width // _TILE) * _TILE), np.float64)
    padded[:height, :width] = values
    return padded.reshape(-1, _TILE, padded.shape[1] // _TILE, _TILE).sum((0, 2))
