"""card.json and card.html of a corpus."""

import os

from imagen_jax.data.card import CARD_FACTS, CARD_PAGE, describe
from imagen_jax.files import StrPath, as_path, write_json, write_text
from imagen_jax.report.corpus_card import corpus_page


def write_card(corpus: StrPath) -> str:
    """Writes the data card of a corpus into its directory; equal corpora have equal cards.

    Returns:
      The path of the page.

    Raises:
      UserError: there is no whole corpus, or a record of it cannot be read.
    """
    card = describe(corpus)
    directory = as_path(corpus)
    page = corpus_page(card.facts, [(one.key, one.caption, one.jpeg) for one in card.thumbnails])
    write_json(directory / CARD_FACTS, card.facts, end="\n")
    write_text(directory / CARD_PAGE, page)
    return os.fspath(directory / CARD_PAGE)
