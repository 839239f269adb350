"""Folders of drawn images: what is missing of a list is drawn, what is there is kept.

Each image is drawn from its own prompt and its own seed. A list is cut into batches once, and a batch of which an
image is missing is drawn whole: a list that is gone on with has the same bits as one drawn at once, and what is there
already stays. `drawn.json` beside the images says what they were drawn with; a folder that says otherwise is refused.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError
from imagen_jax.files import as_path, files_under, is_file_name, make_dirs, read_json, write_json
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import write_png
from imagen_jax.sampling.request import Request
from imagen_jax.stage.sampler_names import sampler_settings
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.typing import Float, UInt8
from imagen_jax.versions import code_version

RECORD = "drawn.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnItem:
    """One image of a list.

    Args:
      prompt: its caption.
      seed: of its noise, in [0, 2**32).
      name: of its PNG file, from the folder of the list; it may lie in folders within.
    """

    prompt: str
    seed: int
    name: str

    def __post_init__(self) -> None:
        if not self.name.endswith(".png") or not all(map(is_file_name, self.name.split("/"))):
            raise UserError(f"name ({self.name!r}) of an image must be a relative path that ends in .png")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Sampling settings of one stage that take the place of its own; None keeps the stage's.

    Args:
      guidance_weight, num_steps, thresholding, aug_level: see `SamplingConfig`; aug_level is for super-resolution.
      sampler: name of one of `stage.sampler_names.SAMPLERS`.
    """

    guidance_weight: float | None = None
    num_steps: int | None = None
    sampler: str | None = None
    thresholding: str | None = None
    aug_level: float | None = None

    def applied(self, stage: Stage, sampling: SamplingConfig) -> SamplingConfig:
        """The stage's settings with these in their place.

        Raises:
          UserError: a value is out of range, or the stage has no use for it.
        """
        changes = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if "aug_level" in changes and stage.low_res_size is None:
            raise UserError(
                f"aug_level ({self.aug_level}) is given for stage {stage.name!r}, which draws from noise alone; give "
                "it for a super-resolution stage"
            )
        if "sampler" in changes:
            changes |= sampler_settings(changes["sampler"])
        return dataclasses.replace(sampling, **changes)


@dataclasses.dataclass(frozen=True)
class DrawnImage:
    """An image just drawn and written.

    Attributes:
      number: of its item in the list.
      path: of its file.
      pixels: what the file holds.
    """

    number: int
    path: str
    pixels: UInt8[np.ndarray, "h w 3"]


def with_settings(cascade: Cascade, settings: Mapping[str, StageSettings]) -> Cascade:
    """The cascade with settings of stages, by their names, in the place of its own.

    Raises:
      UserError: there is no such stage, or a setting does not fit it.
    """
    unknown = [name for name in settings if name not in cascade.names]
    if unknown:
        raise UserError(f"settings for stage {unknown[0]!r}, which the cascade has not: {', '.join(cascade.names)}")
    return cascade.configure(lambda stage, own: settings.get(stage.name, StageSettings()).applied(stage, own))


def record_of(cascade: Cascade, items: Sequence[DrawnItem], **more: Any) -> dict[str, Any]:
    """Facts that images depend on, as `drawn.json` holds them.

    Args:
      cascade: what draws.
      items: the list.
      more: what else they depend on, plain data.
    """
    rows = json.dumps([[item.name, item.prompt, item.seed] for item in items])
    return {
        "version": code_version(),
        "stages": [
            {
                "name": one.stage.name,
                "checkpoint": one.checkpoint,
                "config_hash": one.config_hash,
                "settings": plain_settings(one.sampling),
            }
            for one in cascade.stages
        ],
        "items": {"number": len(items), "sha256": hashlib.sha256(rows.encode()).hexdigest()},
        **more,
    }


def plain_settings(sampling: SamplingConfig) -> dict[str, Any]:
    """Settings as plain data; parts of them as they are written in Python."""
    values = {field.name: getattr(sampling, field.name) for field in dataclasses.fields(sampling)}
    plain = {name: v if isinstance(v, str | int | float | None) else repr(v) for name, v in values.items()}
    # JSON has no infinity.
    return {name: repr(v) if isinstance(v, float) and not np.isfinite(v) else v for name, v in plain.items()}


def claim_folder(folder: str, record: Mapping[str, Any]) -> None:
    """Makes a folder of drawn images, or makes sure that it is of the same record; another version is told.

    Raises:
      UserError: its images were drawn with something else, or it has images and no record.
    """
    path = as_path(folder) / RECORD
    try:
        found = read_json(path)
    except FileNotFoundError:
        if any(name.endswith(".png") for name in files_under(folder)):
            raise UserError(f"{folder} holds images and no {RECORD}; choose another folder") from None
        make_dirs(folder)
        write_json(path, dict(record))
        return
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove the folder {folder} and draw again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (no object); remove the folder {folder} and draw again")
    other = sorted(name for name in {*found, *record} if name != "version" and found.get(name) != record.get(name))
    if other:
        raise UserError(
            f"{folder} holds images that were drawn otherwise: {', '.join(other)} in {RECORD} differ; choose another "
            "folder or remove this one"
        )
    if found.get("version") != record["version"]:
        print(f"{folder}: some images were drawn by version {found.get('version')}, others by {record['version']}")


def draw_missing(
    cascade: Cascade,
    items: Sequence[DrawnItem],
    folder: str,
    *,
    rows: Sequence[int] | None = None,
    low_res: Float[np.ndarray, "n h w 3"] | None = None,
    batch_size: int = 64,
    label: str = "draw",
    told: Mapping[str, Any] | None = None,
) -> Iterator[DrawnImage]:
    """Draws the images of a list that a folder does not hold yet, batch after batch.

    Args:
      cascade: what draws, with its settings (see `with_settings`); the last stage's images are written.
      items: the whole list; names differ.
      folder: of the images, local or in a bucket.
      rows: numbers of the items to draw now, in batches of `batch_size`; None: all, in batches no larger than the list.
      low_res: where the first stage is a super-resolution stage: its inputs in [-1, 1], one for each of `rows`.
      batch_size: images drawn at a time, a multiple of the devices; the last batch is filled up.
      label: what the progress shows; "" shows none.
      told: what else the images depend on, for `drawn.json`: plain data, such as where `low_res` is from.


    Yields:
      Each image, after its file is written.

    Raises:
      UserError: the folder was drawn otherwise, a name stands twice, or images are no numbers.
    """
    check_count("batch_size", batch_size)
    if len({item.name for item in items}) < len(items):
        raise UserError("two images of the list have one name; give each its own")
    if rows is None:
        rows, batch_size = range(len(items)), min(batch_size, max(1, len(items)))
    claim_folder(folder, record_of(cascade, items, **(told or {})))
    there = set(files_under(folder))
    missing = {place for place, row in enumerate(rows) if items[row].name not in there}
    if label and len(missing) < len(rows):
        print(f"{label}: {len(rows) - len(missing)} of {len(rows)} images are there already")
    if not missing:
        return
    unfinished = {place // batch_size for place in missing}
    drawn_again = [place for place in range(len(rows)) if place // batch_size in unfinished]
    request = Request(
        prompts=[items[row].prompt for row in rows],
        seed=[items[row].seed for row in rows],
        low_res=low_res,
    )
    for chosen, drawn in cascade.stream(request, rows=drawn_again, batch_size=batch_size, label=label, fill=True):
        for place, pixels in zip(chosen, drawn[-1], strict=True):
            item = items[rows[place]]
            if place not in missing:
                continue
            path = os.path.join(folder, *PurePosixPath(item.name).parts)
            write_png(path, pixels, {"prompt": item.prompt, "seed": item.seed})
            yield DrawnImage(rows[place], path, pixels)
