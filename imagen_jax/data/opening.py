"""The source at a place, by what lies there."""

import os
from collections.abc import Callable

from imagen_jax.data.raw import Source
from imagen_jax.data.sources import folder_source, list_source
from imagen_jax.data.webdataset import holds_tars, tar_source
from imagen_jax.files import StrPath


def open_source(place: StrPath, *, val_fraction: float = 0.0, seed: int = 0) -> Source:
    """The raw pairs at a place: tar files, a list, or a folder of images.

    Args:
      place: see `tar_source`, `list_source` and `folder_source`.
      val_fraction: part of the images, in [0, 1), that goes to split "val", chosen by a hash.
      seed: of that choice.

    Raises:
      UserError: there is nothing of the kind, or it cannot be read.
    """
    opened: Callable[..., Source]
    if holds_tars(place):
        opened = tar_source
    else:
        opened = list_source if os.path.isfile(place) else folder_source
    return opened(place, val_fraction=val_fraction, seed=seed)
