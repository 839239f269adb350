"""Contents of a cascade run directory, read for the report: nothing here draws or decides."""

import base64
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from PIL import Image

from imagen_jax import files
from imagen_jax.errors import UserError
from imagen_jax.files import AnyPath, as_path
from imagen_jax.image_files import ImageError, open_image
from imagen_jax.report.markup import LARGEST

Record = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image file, carried whole.

    Args:
        name: file name without its ending.
        uri: data: URI of the file's bytes; "" when it could not be read, and then `problem` says why.
        width, height: in pixels.
        text: PNG text chunks (prompt, seed, guidance weights, config hash).
    """

    name: str
    uri: str
    width: int
    height: int
    text: Mapping[str, str]
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One stage's run directory: records and previews by rising step, config.gin, versions.json."""

    name: str
    records: list[Record]
    previews: list[tuple[int, Picture]]
    config: str | None
    versions: dict[str, Any] | None
    cut_short: bool


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """eval.json; alignment[category] has one fraction a guidance weight, None where it was not scored."""

    guidance_weights: list[float]
    alignment: dict[str, list[float | None]]
    best_guidance_weight: float | None
    unconditional: float | None
    chance: float | None
    num_prompts: int | None


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photograph and what the cascade drew for its caption."""

    caption: str
    psnr_db: float | None
    colour_drift: float | None
    original: Picture
    drawn: Picture


@dataclass(frozen=True, kw_only=True)
class CascadeRun:
    """Everything found in a cascade run directory; empty or None where nothing was."""

    name: str
    grid: Picture | None
    samples: list[Picture]
    pairs: list[tuple[Picture, Picture]]
    evaluation: Evaluation | None
    stages: list[StageRun]
    metrics: dict[str, Any] | None
    photos: list[Photo]
    commands: list[tuple[str, str]]

    @property
    def empty(self) -> bool:
        """Tells if nothing at all was found."""
        return not (
            self.grid or self.samples or self.evaluation or self.stages or self.metrics or self.photos or self.commands
        )


def read_run(run_dir: AnyPath) -> CascadeRun:
    """Reads a cascade run directory.

    Raises:
        UserError: the directory is missing, holds nothing of a run, or one of its files is malformed.
    """
    if not run_dir.is_dir():
        raise UserError(f"run directory {str(run_dir)!r} does not exist; give a cascade directory such as runs/demo")
    finals = final_samples(run_dir / "samples")
    samples = [read_picture(path) for path in finals]
    bases = [path.with_name(f"{path.stem}_base.png") for path in finals]
    run = CascadeRun(
        name=run_dir.resolve().name,
        grid=read_picture(run_dir / "samples.png") if (run_dir / "samples.png").is_file() else None,
        samples=samples,
        pairs=[(read_picture(b), s) for b, s in zip(bases, samples, strict=True) if b.is_file()],
        evaluation=read_evaluation(run_dir / "eval.json"),
        stages=_read_stages(run_dir),
        metrics=read_json(run_dir / "metrics.json", dict),
        photos=_read_photos(run_dir),
        commands=read_commands(run_dir),
    )
    if run.empty:
        hint = (
            "it is the run directory of a single stage: give the cascade directory above it"
            if (run_dir / "metrics.jsonl").exists()
            else "give a cascade directory such as runs/demo, which holds samples/, eval.json, base/ and sr/"
        )
        raise UserError(f"run directory {str(run_dir)!r} holds nothing to report on; {hint}")
    return run


def read_commands(run_dir: AnyPath) -> list[tuple[str, str]]:
    """Phases and commands of commands.json; none where it is missing.

    Raises:
        UserError: it is malformed.
    """
    return [
        (_field(item, "phase", str, "commands.json"), _field(item, "command", str, "commands.json"))
        for item in read_json(run_dir / "commands.json", list) or []
    ]


def final_samples(folder: AnyPath) -> list[AnyPath]:
    """The last stage's pictures: "00000_base.png" beside "00000.png" is what an earlier stage drew of it."""
    paths = sorted(folder.glob("*.png"))
    stems = {path.stem for path in paths}
    earlier = {path.stem for path in paths if "_" in path.stem and path.stem.rsplit("_", 1)[0] in stems}
    return [path for path in paths if path.stem not in earlier]


def read_picture(path: AnyPath) -> Picture:
    """Reads an image with its text chunks; an unreadable one says so instead of costing the whole report."""
    try:
        content = path.read_bytes()
        image = open_image(content)
        kind = Image.MIME[str(image.format)]
        text = {str(k): str(v) for k, v in getattr(image, "text", {}).items()}
        width, height = image.size
    except (OSError, ImageError, KeyError) as error:
        return Picture(
            name=path.stem, uri="", width=0, height=0, text={}, problem=f"{path.name}: {type(error).__name__}"
        )
    encoded = base64.b64encode(content).decode("ascii")
    return Picture(name=path.stem, uri=f"data:{kind};base64,{encoded}", width=width, height=height, text=text)


def read_metrics(path: AnyPath) -> tuple[list[Record], bool]:
    """Reads metrics.jsonl into records by rising step.

    Records of the same step are merged, the later line winning: a resumed run repeats the steps after its
    checkpoint. A last line that a killed run left unfinished is left out.

    Returns:
        The records, and whether the last line was cut short.

    Raises:
        UserError: a line before the last is not a JSON object with a step.
    """
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    by_step: dict[float, Record] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                return [by_step[step] for step in sorted(by_step)], True
            entry = None
        if not isinstance(entry, dict) or not is_number(entry.get("step")) or not abs(entry["step"]) < LARGEST:
            raise UserError(
                f'{path} line {number} is {line[:60]!r}; expected a JSON object with a number "step"; '
                "delete that line or restore the file"
            )
        by_step.setdefault(entry["step"], {}).update(_scalars(entry))
    return [by_step[step] for step in sorted(by_step)], False


def _scalars(entry: Mapping[str, Any]) -> Record:
    """The numbers of a metrics line; a nested one is named "outer/inner", as in TensorBoard."""
    scalars: Record = {}
    for name, value in entry.items():
        inner = value.items() if isinstance(value, dict) else ()
        scalars |= {f"{name}/{key}": float(number) for key, number in inner if is_number(number)}
        if is_number(value):
            scalars[name] = float(value)
    return scalars


def is_number(value: Any) -> TypeGuard[float]:
    """Tells if a JSON value is a number, and no integer beyond all floats."""
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )


def finite(value: Any) -> float:
    """A finite number of a JSON file.

    Raises:
        ValueError: it is none.
    """
    if not is_number(value) or not abs(value) < LARGEST:
        raise ValueError(f"{str(value)[:80]!r} is no finite number")
    return float(value)


def read_json(path: AnyPath, kind: type) -> Any:
    """A JSON file's content, None where there is no file.

    Raises:
        UserError: it is not JSON, or not of this kind.
    """
    if not path.is_file():
        return None
    try:
        content = files.read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); write it anew with the phase that made it") from error
    if not isinstance(content, kind):
        raise UserError(
            f"{path} holds a {type(content).__name__}; expected a {kind.__name__}; "
            "write it anew with the phase that made it"
        )
    return content


def _field(item: Any, key: str, kind: type, file: str) -> Any:
    if not isinstance(item, dict) or not isinstance(item.get(key), kind):
        raise UserError(f"{file}: entry {str(item)[:80]!r} has no {kind.__name__} {key!r}; add it to that entry")
    return item[key]


def optional(content: Mapping[str, Any], key: str) -> float | None:
    """A number of a JSON object; None where there is none."""
    return float(content[key]) if is_number(content.get(key)) else None


def read_evaluation(path: AnyPath) -> Evaluation | None:
    """eval.json, None where there is none.

    Raises:
        UserError: it is malformed.
    """
    content = read_json(path, dict)
    if content is None:
        return None
    by_weight = _field(content, "alignment", dict, str(path))
    try:
        ordered = sorted(
            ((finite(float(weight)), scores) for weight, scores in by_weight.items()), key=lambda pair: pair[0]
        )
        categories = list(dict.fromkeys(name for _, scores in ordered for name in scores.keys()))
        alignment = {name: [optional(scores, name) for _, scores in ordered] for name in categories}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f'{path}: "alignment" must map guidance weights to scores by category, '
            f'such as {{"3.0": {{"single_both": 0.9}}}}; evaluate the run again ({error})'
        ) from error
    num_prompts = optional(content, "num_prompts")
    return Evaluation(
        guidance_weights=[weight for weight, _ in ordered],
        alignment=alignment,
        best_guidance_weight=optional(content, "best_guidance_weight"),
        unconditional=optional(content, "unconditional_both"),
        chance=optional(content, "chance_both"),
        num_prompts=int(num_prompts) if num_prompts is not None and math.isfinite(num_prompts) else None,
    )


def _read_stages(run_dir: AnyPath) -> list[StageRun]:
    # The base stage comes first in the cascade, whatever the alphabet says.
    folders = sorted((p for p in run_dir.iterdir() if p.is_dir()), key=lambda p: (p.name != "base", p.name))
    stages = []
    for folder in folders:
        records: list[Record] = []
        cut_short = False
        if (folder / "metrics.jsonl").is_file():
            records, cut_short = read_metrics(folder / "metrics.jsonl")
        elif not (folder / "config.gin").is_file():
            continue
        numbered = [
            (int(match[1]), path)
            for path in (folder / "samples").glob("step_*.png")
            if (match := re.fullmatch(r"step_(\d+)", path.stem))
        ]
        config = folder / "config.gin"
        stages.append(
            StageRun(
                name=folder.name,
                records=records,
                previews=[(step, read_picture(path)) for step, path in sorted(numbered)],
                config=config.read_bytes().decode("utf-8", errors="replace") if config.is_file() else None,
                versions=read_json(folder / "versions.json", dict),
                cut_short=cut_short,
            )
        )
    return stages


def _read_photos(run_dir: AnyPath) -> list[Photo]:
    file = "photos.json"
    return [
        Photo(
            caption=_field(item, "caption", str, file),
            psnr_db=optional(item, "psnr_db"),
            colour_drift=optional(item, "colour_drift"),
            original=read_picture(as_path(os.path.join(run_dir, _field(item, "original", str, file)))),
            drawn=read_picture(as_path(os.path.join(run_dir, _field(item, "drawn", str, file)))),
        )
        for item in read_json(run_dir / file, list) or []
    ]
