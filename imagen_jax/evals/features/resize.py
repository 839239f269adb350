"""Resizes of other programs, each as that program computes it: scores depend on them more than on most else.

tf1_bilinear     TensorFlow 1, in torch-fidelity and pytorch-fid's original: no antialias, no half-pixel centres
torch_bilinear   PyTorch's interpolate, in pytorch-fid: no antialias, half-pixel centres
clean_bicubic    clean-fid (arXiv 2104.11222): Pillow's bicubic with antialias, each channel as floats, not rounded
pil_resized      Pillow on 8-bit pixels, as CLIP and most data pipelines do
"""

import numpy as np
from PIL import Image

from imagen_jax.typing import Float, UInt8


def tf1_bilinear(images: UInt8[np.ndarray, "b h w c"], size: int) -> Float[np.ndarray, "b _s _s c"]:
    """Resizes to size x size; the pixel at i comes from i h / size, its upper neighbour at most the last."""
    return _bilinear(images, size, half_pixel=False)


def torch_bilinear(images: UInt8[np.ndarray, "b h w c"], size: int) -> Float[np.ndarray, "b _s _s c"]:
    """Resizes to size x size; the pixel at i comes from (i + 1/2) h / size - 1/2, at least 0."""
    return _bilinear(images, size, half_pixel=True)


def _bilinear(images: np.ndarray, size: int, half_pixel: bool) -> np.ndarray:
    x = images.astype(np.float32)
    for axis in (2, 1):
        length = x.shape[axis]
        # In float32, as both programs do: the last bit decides between neighbours.
        places = np.arange(size, dtype=np.float32)
        if half_pixel:
            places = np.maximum((places + np.float32(0.5)) * np.float32(length / size) - np.float32(0.5), 0)
        else:
            places = places * np.float32(length / size)
        low = np.minimum(places.astype(np.int32), length - 1)
        high = np.minimum(low + 1, length - 1)
        share = (places - low.astype(np.float32)).reshape([-1 if one == axis else 1 for one in range(4)])
        below, above = np.take(x, low, axis=axis), np.take(x, high, axis=axis)
        x = below + (above - below) * share
    return x


def clean_bicubic(image: UInt8[np.ndarray, "h w 3"], size: int) -> Float[np.ndarray, "_s _s 3"]:
    """Resizes one image to size x size: floats in [0, 255]."""
    channels = [
        Image.fromarray(image[..., channel].astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
        for channel in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) whose shorter side is `size`; the longer is cut to a whole number, as CLIP's programs do."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def pil_resized(
    image: UInt8[np.ndarray, "h w 3"], height: int, width: int, resample: int = Image.Resampling.BICUBIC
) -> UInt8[np.ndarray, "_h _w 3"]:
    """Resizes one image on 8-bit pixels; one of that size is left as it is."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling(resample)))


def centre_crop(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "_h _w 3"]:
    """Middle of an image; what a smaller one lacks is black."""
    pad = [max(wanted - got, 0) for got, wanted in zip(image.shape, (height, width), strict=False)]
    if any(pad):
        image = np.pad(image, (*(((one + 1) // 2, one // 2) for one in pad), (0, 0)))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
