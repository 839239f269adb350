"""The source at a place, by what lies there."""

import os

from imagen_jax.checks import check_path
from imagen_jax.data.arrow import arrow_source, holds_arrow
from imagen_jax.data.lists import Columns
from imagen_jax.data.raw import Source
from imagen_jax.data.sources import folder_source, list_source
from imagen_jax.data.tfds_folder import holds_tfds, tfds_source
from imagen_jax.data.webdataset import holds_tars, tar_source
from imagen_jax.errors import UserError
from imagen_jax.files import StrPath, as_path


def open_source(
    place: StrPath,
    *,
    val_fraction: float = 0.0,
    seed: int = 0,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> Source:
    """The raw pairs at a place: tar files, a dataset on disk, a list, or a folder of images.

    Args:
      place: see `tar_source`, `arrow_source`, `tfds_source`, `list_source` and `folder_source`.
      val_fraction: part of the images, in [0, 1), that goes to split "val", chosen by a hash.
      seed: of that choice.
      image_column, caption_column: of a list or dataset, if they have other names than usual.

    Raises:
      UserError: there is nothing of the kind, or it cannot be read.
    """
    check_path("the images", place)
    opened_dataset = arrow_source if holds_arrow(place) else tfds_source if holds_tfds(place) else None
    if opened_dataset is not None:
        return opened_dataset(
            place,
            image_column=image_column or "image",
            caption_column=caption_column,
            val_fraction=val_fraction,
            seed=seed,
        )
    named = {"image": image_column, "caption": caption_column}
    columns = Columns(**{role: name for role, name in named.items() if name}) if any(named.values()) else None
    if holds_tars(place):
        if columns is not None:
            raise UserError(f"columns are named, but {os.fspath(place)!r} is tar files; leave out the names")
        return tar_source(place, val_fraction=val_fraction, seed=seed)
    opened = list_source if as_path(place).is_file() else folder_source
    return opened(place, val_fraction=val_fraction, seed=seed, columns=columns)
