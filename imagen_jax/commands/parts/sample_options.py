"""The flags of `imagen_jax sample` as a frozen dataclass; nothing heavy is imported, so `--help` stays quick."""

import dataclasses
from collections.abc import Sequence

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError

MODES = ("text", "image_to_image", "inpaint", "outpaint", "vary", "upscale")
SAMPLERS = ("ddpm", "ddim", "dpm++", "dpm++sde", "heun")
THRESHOLDINGS = ("dynamic", "static", "none")
WEIGHTS = ("auto", "resident", "offload")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """The flags of `imagen_jax sample` but for captions and checkpoint; None where a flag was not given.

    Args:
      output: folder for the PNG files.
      text_encoder: where the pretrained text encoder is; None: where the checkpoint says.
      lora: LoRAs to merge, each a folder or FOLDER:WEIGHT.
      embedding: files of learned words.
      num_images: images a caption.
      list: also writes list.jsonl, which `build_corpus` takes.
      overwrite: replaces images that are in the folder already.
      stage, first_stage: names of the last and the first stage to run; None: all.
      batch_size: images drawn at a time.
      seed: one for all, or one an image.
      size: height and width of the images; None: as trained.
      guidance_weight: of the base stage, or one for each stage.
      negative_prompt: what guidance leads away from; None: the null text.
      aug_level: of all super-resolution stages, or one for each.
      sampler: one of SAMPLERS, for every stage.
      num_steps: of all stages, or one for each.
      thresholding: one of THRESHOLDINGS.
      percentile: of dynamic thresholding, 0 to 100.
      tile_size, tile_overlap: pixels of a tile, and those that neighbours share (None: a quarter of a tile).
      weights: one of WEIGHTS, see `Cascade`.
      spatial: devices that share one image's height.
      mode: one of MODES.
      image, mask: files to work on.
      border: pixels to add at top, bottom, left and right.
      strength, num_resamples, jump_length: see `stage.guided.Edit`; None: the mode's own.

    Raises:
      UserError: a word that is none of the choices, a number out of range, or tile_overlap without tile_size.
    """

    output: str
    text_encoder: str | None = None
    lora: Sequence[str] = ()
    embedding: Sequence[str] = ()
    num_images: int = 1
    list: bool = False
    overwrite: bool = False
    stage: str | None = None
    first_stage: str | None = None
    batch_size: int = 64
    seed: int | tuple[int, ...] = 0
    size: tuple[int, int] | None = None
    guidance_weight: float | tuple[float, ...] | None = None
    negative_prompt: str | None = None
    aug_level: float | tuple[float, ...] | None = None
    sampler: str | None = None
    num_steps: int | tuple[int, ...] | None = None
    thresholding: str | None = None
    percentile: float | None = None
    tile_size: int | None = None
    tile_overlap: int | None = None
    weights: str = "auto"
    spatial: int = 1
    mode: str = "text"
    image: str | None = None
    mask: str | None = None
    border: tuple[int, ...] | None = None
    strength: float | None = None
    num_resamples: int | None = None
    jump_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("lora", "embedding"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, value, choices in (
            ("mode", self.mode, MODES),
            ("weights", self.weights, WEIGHTS),
            ("sampler", self.sampler, SAMPLERS),
            ("thresholding", self.thresholding, THRESHOLDINGS),
        ):
            if value is not None and value not in choices:
                raise UserError(f"--{name} ({value!r}) must be one of {', '.join(choices)}")
        check_count("--batch_size", self.batch_size)
        check_count("--num_images", self.num_images)
        if self.tile_overlap is not None and self.tile_size is None:
            raise UserError("--tile_overlap needs --tile_size")

    def given(self, *names: str) -> dict[str, object]:
        """Those of the named options that were given, in the order of the names."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}
