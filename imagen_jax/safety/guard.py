"""The guard: all that a request and its images pass, in its order."""

import dataclasses

from imagen_jax.safety.audit import AuditLog
from imagen_jax.safety.finding import Finding
from imagen_jax.safety.image_filter import ImageFilter
from imagen_jax.safety.prompt_filter import Match, PromptFilter
from imagen_jax.safety.provenance import XMP_KEY, Provenance
from imagen_jax.safety.signing import ManifestSigner
from imagen_jax.safety.watermark import MIN_SIDE, Image, embed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guard:
    """Parts that are each on where they are given.

    Args:
      prompt_filter: refuses prompts; None: none is refused.
      audit: notes requests, allowed and refused; None: nothing is noted.
      image_filters: refuse images, in this order.
      watermark: key of the mark that images get; None: they get none.
      provenance: what image files say of their origin; None: nothing.
      signer: signs that; None: nobody does.
    """

    prompt_filter: PromptFilter | None = None
    audit: AuditLog | None = None
    image_filters: tuple[ImageFilter, ...] = ()
    watermark: str | None = None
    provenance: Provenance | None = None
    signer: ManifestSigner | None = None

    def admit(self, prompt: str, seed: int, images: int) -> Match | None:
        """Judges and notes a request.

        Args:
          prompt: the caption.
          seed: of the first image.
          images: number of them.

        Returns:
          Why it is refused; None: it is allowed.

        Raises:
          OSError: it cannot be noted; nothing may be drawn then.
        """
        match = self.prompt_filter.match(prompt) if self.prompt_filter is not None else None
        if self.audit is not None:
            self.audit.append(prompt, seed, images, match)
        return match

    def screen(self, image: Image, prompt: str, seed: int | None) -> Finding | None:
        """Judges an image, and notes one that is refused.

        Args:
          image: drawn, or given to be edited.
          prompt: what it is drawn from.
          seed: of it; None: it was given.

        Returns:
          Why it is refused; None: it is allowed.

        Raises:
          OSError: that cannot be noted.
        """
        for one in self.image_filters:
            finding = one.judge(image)
            if finding is not None:
                if self.audit is not None:
                    self.audit.append_image(prompt, seed, finding)
                return finding
        return None

    def mark(self, image: Image) -> Image:
        """An image as it leaves: with the mark, unless it is too small for it to be found again."""
        if self.watermark is None or not markable(image.shape[:2]):
            return image
        return embed(image, self.watermark)

    def info(self, edited: bool = False) -> dict[str, str]:
        """Text chunks of a PNG file; `edited`: a part of the image is not drawn but given."""
        return {} if self.provenance is None else {XMP_KEY: self.provenance.xmp(edited)}

    def sign(self, png: bytes, edited: bool = False) -> bytes:
        """A PNG file as it leaves: signed, if there is who signs; `edited` as for `info`."""
        return png if self.signer is None else self.signer.sign(png, edited)


def markable(size: tuple[int, ...]) -> bool:
    """Tells if images of a height and width are marked."""
    return min(size) >= MIN_SIDE
