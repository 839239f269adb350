"""Caption cleaning, off by default: captions from web pages carry broken encodings and HTML entities."""

import html

import ftfy


def clean_caption(caption: str) -> str:
    """Mends text that was decoded wrongly, undoes HTML entities (twice: some are escaped twice) and trims."""
    return html.unescape(html.unescape(ftfy.fix_text(caption))).strip()
