"""Provenance: a file says that a program drew it, in the words of XMP and IPTC that other programs read.

An XMP packet (ISO 16684-1) in RDF/XML; in a PNG file it is the uncompressed iTXt chunk of the key XMP_KEY. It holds

    xmp:CreatorTool                     generator and version
    Iptc4xmpExt:DigitalSourceType       trainedAlgorithmicMedia, IPTC's word for what a trained model drew;
                                        compositeWithTrainedAlgorithmicMedia where it drew a part of a given image
    imagen_jax:BundleSHA256             SHA-256 of the bundle's digests.json, and so of every file of the bundle
"""

import dataclasses
import re
from xml.sax.saxutils import escape

from imagen_jax.errors import UserError

XMP_KEY = "XML:com.adobe.xmp"
DRAWN_BY_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
EDITED_BY_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
NAMESPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "imagen_jax": "urn:imagen_jax:provenance#",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Words of image files about where they are from.

    Args:
      generator: name and version of the program, one line.
      bundle: SHA-256 of the bundle's digests.json, in hexadecimal; None: drawn from no bundle.

    Raises:
      UserError: `bundle` is no such digest, or `generator` is empty or has a character that no line has.
    """

    generator: str
    bundle: str | None = None

    def __post_init__(self) -> None:
        if not self.generator or not self.generator.isprintable():
            raise UserError(f"generator ({self.generator!r:.80}) must be a name and a version on one line")
        if self.bundle is not None and not re.fullmatch("[0-9a-f]{64}", self.bundle):
            raise UserError(f"bundle ({self.bundle!r:.80}) must be a SHA-256 of 64 hexadecimal digits")

    def source_type(self, edited: bool = False) -> str:
        """IPTC's word for an image that is drawn, or of which a part is not drawn but given."""
        return EDITED_BY_MODEL if edited else DRAWN_BY_MODEL

    def xmp(self, edited: bool = False) -> str:
        """The packet; `edited` as for `source_type`."""
        properties = {"xmp:CreatorTool": self.generator, "Iptc4xmpExt:DigitalSourceType": self.source_type(edited)}
        if self.bundle is not None:
            properties["imagen_jax:BundleSHA256"] = self.bundle
        spaces = "".join(f' xmlns:{short}="{long}"' for short, long in NAMESPACES.items())
        lines = "".join(f"<{name}>{escape(value)}</{name}>\n" for name, value in properties.items())
        return (
            '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
            f'<x:xmpmeta xmlns:x="adobe:ns:meta/">\n<rdf:RDF{spaces}>\n<rdf:Description rdf:about="">\n'
            f'{lines}</rdf:Description>\n</rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="r"?>'
        )
