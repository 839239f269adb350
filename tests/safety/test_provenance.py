"""Provenance, read back by an XML parser and from the bytes of a PNG file."""

import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.safety.guard import Guard
from imagen_jax.safety.provenance import Provenance
from imagen_jax.sampling.images import as_png


def read(packet: str) -> dict[str, str | None]:
    """Properties of a packet, by their whole names."""
    (about,) = ElementTree.fromstring(packet).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert about.get("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}about") == ""
    return {one.tag: one.text for one in about}


def chunks(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of a PNG file's chunks."""
    place = 8
    while place < len(file):
        (length,) = struct.unpack(">I", file[place : place + 4])
        yield file[place + 4 : place + 8], file[place + 8 : place + 8 + length]
        place += 12 + length


def test_a_packet_says_that_a_model_drew():
    assert read(Provenance(generator='x <1> & "é"', bundle="0f" * 32).xmp()) == {
        "{http://ns.adobe.com/xap/1.0/}CreatorTool": 'x <1> & "é"',
        "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType": (
            "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
        ),
        "{urn:imagen_jax:provenance#}BundleSHA256": "0f" * 32,
    }
    assert len(read(Provenance(generator="x").xmp())) == 2


def test_a_png_file_has_it_as_one_uncompressed_chunk_before_its_pixels():
    assert Guard().info() == {}
    provenance = Provenance(generator="x 1")
    file = as_png(np.zeros((2, 2, 3), np.uint8), {"seed": 1, **Guard(provenance=provenance).info()})
    found = list(chunks(file))
    kinds = [kind for kind, _ in found]
    # Keyword, then: not compressed, method 0, no language, no translated keyword (PNG, 11.3.3.4; XMP, part 3).
    head = b"XML:com.adobe.xmp\0\0\0\0\0"
    (place,) = [place for place, (kind, content) in enumerate(found) if kind == b"iTXt" and content.startswith(head)]
    assert place < kinds.index(b"IDAT")
    assert found[place][1][len(head) :].decode() == provenance.xmp()


def test_what_is_no_digest_or_name_is_refused():
    with pytest.raises(UserError, match="64 hexadecimal"):
        Provenance(generator="x", bundle="0F" * 32)
    for name in ("", "a\0b", "a\nb"):
        with pytest.raises(UserError, match="generator"):
            Provenance(generator=name)
