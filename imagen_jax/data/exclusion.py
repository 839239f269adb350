"""Captions and pictures that must not be trained on, such as those of an evaluation: corpora, sources and texts."""

from collections.abc import Iterator, Sequence

from imagen_jax.data import records
from imagen_jax.data.duplicates import Screen, caption_mark, marks_of, picture_mark
from imagen_jax.data.opening import open_source
from imagen_jax.data.raw import Rejection
from imagen_jax.errors import UserError
from imagen_jax.files import as_path
from imagen_jax.image_files import ImageError, centre_square, decode_image


def excluded(places: Sequence[str], image_size: int) -> Screen:
    """The screen that keeps out what lies at some places.

    Args:
      places: corpora; sources (see `open_source`), of which images that cannot be read count by their captions; .txt
        files of a caption a line.
      image_size: of the corpus to build, in pixels: pictures are compared as they would be in it.

    Raises:
      UserError: there is nothing at a place, or it cannot be read.
    """
    return marks_of(pair for place in places for pair in _marks_at(place, image_size))


def _marks_at(place: str, image_size: int) -> Iterator[tuple[str, str]]:
    if (as_path(place) / records.MANIFEST).is_file():
        corpus = records.Corpus(place)
        for split in corpus.splits:
            for record in corpus.records(split):
                yield caption_mark(record.caption), picture_mark(centre_square(decode_image(record.image), image_size))
        return
    if place.endswith(".txt"):
        try:
            lines = as_path(place).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"excluded captions {place!r} cannot be read ({error}); give a UTF-8 text") from error
        yield from ((caption_mark(line), "") for line in lines)
        return
    for part in open_source(place).parts:
        for one in part():
            if isinstance(one, Rejection):
                continue
            yield caption_mark(one.caption), ""
            try:
                yield "", picture_mark(centre_square(decode_image(one.image), image_size))
            except ImageError:
                continue
