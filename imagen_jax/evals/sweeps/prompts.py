"""Prompts of a sweep: drawn shapes with their scenes, a file with one caption a line, or COCO's captions."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from imagen_jax.checks import check_count, check_path
from imagen_jax.data.shapes import Scene, eval_prompts
from imagen_jax.errors import UserError
from imagen_jax.evals.coco import read_coco
from imagen_jax.evals.protocols import Protocol as FidProtocol
from imagen_jax.evals.protocols import choose_captions, find_protocols
from imagen_jax.evals.shapes_judge import category
from imagen_jax.files import local_copy, shipped_file

CAPTION_SPLIT = "val2014"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptList:
    """Prompts that every point of a sweep draws.

    Args:
      prompts: captions.
      seeds: of each one's noise.
      categories: of each, for the best and worst samples.
      scenes: of each, where the exact judge of shapes can read the images.
      protocol: of FID; None: there is no reference.
      reference_dir: folder of the reference's images.
      reference_names: their files in it.
      about: plain data that says where the prompts are from.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    categories: tuple[str, ...]
    scenes: tuple[Scene, ...] | None = None
    protocol: FidProtocol | None = None
    reference_dir: str = ""
    reference_names: tuple[str, ...] = ()
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of prompts and seeds."""
        rows = json.dumps([list(self.prompts), list(self.seeds)])
        return hashlib.sha256(rows.encode()).hexdigest()


@runtime_checkable
class PromptSource(Protocol):
    """A place that prompts come from."""

    def read(self) -> PromptList:
        """The prompts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapesPrompts:
    """Captions of drawn shapes, whose images the exact judge reads.

    Args:
      num_single, num_two, num_count, num_heldout: prompts of each kind.
      seed: of prompts and noise.
    """

    num_single: int = 128
    num_two: int = 128
    num_count: int = 32
    num_heldout: int = 64
    seed: int = 1

    def __post_init__(self) -> None:
        for name, least in (("num_single", 1), ("num_two", 0), ("num_count", 0), ("num_heldout", 0), ("seed", 0)):
            check_count(f"ShapesPrompts.{name}", getattr(self, name), least)

    def read(self) -> PromptList:
        """The captions with their scenes."""
        found = eval_prompts(self.seed, self.num_single, self.num_two, self.num_count, self.num_heldout)
        scenes = tuple(scene for _, scene in found)
        return PromptList(
            prompts=tuple(caption for caption, _ in found),
            seeds=_seeds(self.seed, len(found)),
            categories=tuple(category(scene) for scene in scenes),
            scenes=scenes,
            about={"source": "shapes", **dataclasses.asdict(self)},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilePrompts:
    """Captions of a text file, one a line.

    Args:
      path: of the file, UTF-8.
      seed: of the noise.
    """

    path: str
    seed: int = 0

    def __post_init__(self) -> None:
        check_path("FilePrompts.path", self.path)
        check_count("FilePrompts.seed", self.seed, 0)

    def read(self) -> PromptList:
        """The captions.

        Raises:
          UserError: the file cannot be read or holds none.
        """
        try:
            with open(local_copy(shipped_file(self.path)), encoding="utf-8-sig") as file:
                prompts = tuple(line.strip() for line in file if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"FilePrompts.path={self.path} cannot be read ({error}); give a UTF-8 file") from error
        if not prompts:
            raise UserError(f"FilePrompts.path={self.path} holds no caption; write one a line")
        return PromptList(
            prompts=prompts,
            seeds=_seeds(self.seed, len(prompts)),
            categories=("all",) * len(prompts),
            about={"source": "file", "seed": self.seed},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CocoPrompts:
    """COCO's captions as a protocol of FID chooses them, and its reference images.

    Args:
      folder: of annotations/ and the images, see `read_coco`.
      protocol: name of one of `protocols.PROTOCOLS` that is of COCO.
      num_images: captions to draw in place of the protocol's number; None: the protocol's.
      seed: of the noise.
    """

    folder: str
    protocol: str = "imagen_30k"
    num_images: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_path("CocoPrompts.folder", self.folder)
        check_count("CocoPrompts.seed", self.seed, 0)
        find_protocols((self.protocol,))
        if self.num_images is not None:
            check_count("CocoPrompts.num_images", self.num_images)

    def read(self) -> PromptList:
        """The captions, and the names of the reference's images."""
        (protocol,) = find_protocols((self.protocol,))
        if self.num_images is not None:
            protocol = dataclasses.replace(protocol, num_images=self.num_images)
        captions = read_coco(self.folder, CAPTION_SPLIT)
        reference = captions if protocol.split == CAPTION_SPLIT else read_coco(self.folder, protocol.split)
        print(f"COCO {CAPTION_SPLIT}: {captions.told()}")
        choice = choose_captions(protocol, captions.caption_ids)
        image_of = {one: image for image, ids in captions.caption_ids.items() for one in ids}
        names = [captions.files[image_of[one]] for one in choice.caption_ids] if protocol.matched else None
        if names is None:
            names = [*reference.files.values(), *reference.images_without_caption]
        return PromptList(
            prompts=tuple(captions.captions[one] for one in choice.caption_ids),
            seeds=_seeds(self.seed, len(choice.caption_ids)),
            categories=("all",) * len(choice.caption_ids),
            protocol=protocol,
            reference_dir=reference.folder,
            reference_names=tuple(sorted(dict.fromkeys(names))),
            about={
                "source": "COCO",
                "seed": self.seed,
                "captions": {"split": CAPTION_SPLIT, "sha256": choice.sha256},
                "protocol": dataclasses.asdict(protocol),
            },
        )


def _seeds(seed: int, number: int) -> tuple[int, ...]:
    return tuple((seed + i) % 2**32 for i in range(number))


def rows_of(number: int, batch_size: int) -> Sequence[range]:
    """Numbers of the images of each unit."""
    return [range(start, min(start + batch_size, number)) for start in range(0, number, batch_size)]
