"""The sections of the report, each a function of what the run directory holds."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from imagen_jax.report.data import CascadeRun, Picture, is_number
from imagen_jax.report.markup import Child, Html, duration, join, number, percent, table, tag
from imagen_jax.report.samplers import Study, samplers, thresholds
from imagen_jax.report.scores import alignment, at_best, held_out
from imagen_jax.report.training import pick, training

_CHUNK_NAMES = {
    "guidance_weight": "guidance",
    "num_steps": "steps",
    "aug_level": "augmentation",
    "config_hash": "config",
}
# The caption, the file's name, the cascade's own names, digests beside what they are of, and what seldom differs.
_UNTOLD = frozenset(
    ("prompt", "index", "stages", "checkpoint", "image_sha256", "mask_sha256", "grid", "schedule", "guidance_schedule")
) | {"thresholding", "percentile", "threshold_cap", "tile_size", "tile_overlap"}
_PIXEL_SIDE = 128
_MOST_SAMPLES = 96
_MOST_PAIRS = 16


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page.

    Args:
        anchor: its id, for links.
        title: its heading.
        body: what stands under the heading; None when the run directory lacks its input.
        missing: the plain note for that case.
    """

    anchor: str
    title: str
    body: Html | None
    missing: str


def sections(run: CascadeRun, steps: Study | None, rules: Sequence[Study]) -> list[Section]:
    """All sections in page order; `steps` and `rules` are the sampler and thresholding sweeps."""
    samples, with_bases = bool(run.grid or run.samples), bool(run.pairs)
    score = run.evaluation
    unseen = score is not None and "heldout_both" in score.alignment
    configs = [stage for stage in run.stages if stage.config is not None]

    def made(present: Any, build: Callable[[], Html]) -> Html | None:
        return build() if present else None

    entries: list[tuple[str, str, Html | None, str]] = [
        ("samples", "Samples", made(samples, lambda: _samples(run)), "no samples.png and no samples/*.png"),
        (
            "alignment",
            "Alignment with the caption",
            alignment(score) if score and score.guidance_weights else None,
            "no eval.json with scores",
        ),
        (
            "held-out",
            "Held-out against seen",
            held_out(score) if score and unseen else None,
            "no heldout_both scores in eval.json",
        ),
        ("samplers", "Samplers", samplers(steps) if steps else None, "no samplers.json"),
        ("thresholding", "Thresholding", thresholds(rules) if rules else None, "no thresholds.json"),
        (
            "super-resolution",
            "Low resolution beside super-resolved",
            made(with_bases, lambda: _pairs(run)),
            "no samples/*_base.png",
        ),
        (
            "training",
            "Training",
            made(run.stages, lambda: training(run.stages)),
            "no stage directory with metrics.jsonl",
        ),
        (
            "cost",
            "Time and memory",
            made(run.metrics is not None, lambda: _cost(run.metrics or {})),
            "no metrics.json",
        ),
        ("photos", "Photographs", made(run.photos, lambda: _photos(run)), "no photos.json"),
        ("commands", "Commands", made(run.commands, lambda: _commands(run)), "no commands.json"),
        (
            "configuration",
            "Configuration",
            made(
                configs,
                lambda: join(*(_details(f"{s.name}/config.gin", str(s.config)) for s in configs)),
            ),
            "no stage directory with config.gin",
        ),
    ]
    return [Section(anchor=a, title=t, body=b, missing=m) for a, t, b, m in entries]


def result_line(run: CascadeRun) -> str:
    """The result in one sentence, from the strongest evidence the directory holds."""
    score = run.evaluation
    both = at_best(score, "single_both")
    if score is not None and both is not None:
        beside = [("pictures drawn without a caption", score.unconditional), ("chance", score.chance)]
        levels = " and ".join(f"{percent(v)} for {name}" for name, v in beside if v is not None)
        compared = f", against {levels}" if levels else ""
        return (
            f"At guidance weight {number(score.best_guidance_weight)}, {percent(both)} of the pictures show "
            f"both the colour and the shape that the caption asks for{compared}."
        )
    drawn = sorted(photo.psnr_db for photo in run.photos if photo.psnr_db is not None)
    if len(drawn) == 1:
        return f"One photograph drawn from its caption, PSNR {drawn[0]:.1f} dB."
    if drawn:
        median = f"{drawn[len(drawn) // 2]:.1f} dB"
        return f"{len(drawn)} photographs drawn from their captions, median PSNR {median}."
    trained = [f"{s.name} for {number(s.records[-1]['step'])} steps" for s in run.stages if s.records]
    if trained:
        return f"Trained {' and '.join(trained)}; alignment was not scored."
    return f"{len(run.samples)} pictures drawn; alignment was not scored."


def facts(run: CascadeRun) -> Html | None:
    """The headline numbers as tiles, those that were measured."""
    score, metrics = run.evaluation, run.metrics or {}
    tiles: list[tuple[str, str]] = []
    for label, category in (
        ("colour and shape right", "single_both"),
        ("same, held-out pairs", "heldout_both"),
    ):
        value = at_best(score, category)
        if value is not None:
            tiles.append((label, percent(value)))
    if score is not None and score.best_guidance_weight is not None:
        tiles.append(("best guidance weight", number(score.best_guidance_weight)))
    if score is not None and score.num_prompts is not None:
        tiles.append(("prompts scored", number(score.num_prompts)))
    if is_number(metrics.get("seconds_total")):
        tiles.append(("from start to end", duration(metrics["seconds_total"])))
    if is_number(metrics.get("peak_memory_gb")):
        tiles.append(("peak memory", f"{number(metrics['peak_memory_gb'])} GB"))
    if not tiles:
        return None
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in tiles), class_="facts")


def picture(image: Picture, alt: str) -> Html:
    """An <img> that carries its bytes; small pictures are scaled up by whole pixels."""
    if not image.uri:
        return tag("div", f"Not readable: {image.problem}", class_="unread")
    small = max(image.width, image.height) <= _PIXEL_SIDE
    return tag(
        "img",
        src=image.uri,
        alt=alt,
        width=image.width,
        height=image.height,
        class_="pixels" if small else None,
    )


def _prompt(image: Picture) -> str:
    return image.text.get("prompt") or f"{image.name} (no prompt in the file)"


def _chunks(image: Picture) -> Html:
    parts = []
    for key, chunk in image.text.items():
        if key in _UNTOLD:
            continue
        value = _list_in_words(chunk)
        shown = value if len(value) <= 24 else f"{value[:12]}…"
        name = _CHUNK_NAMES.get(key, key.replace("_", " "))
        parts.append(tag("span", f"{name} {shown}", title=None if shown == value else value))
    return tag("div", *parts, class_="meta chunks")


def _list_in_words(chunk: str) -> str:
    """A JSON list of one value a stage as "4.0, 2.0"; anything else as it is."""
    try:
        values = json.loads(chunk)
    except ValueError:
        return chunk
    return ", ".join("–" if v is None else str(v) for v in values) if isinstance(values, list) else chunk


def _samples(run: CascadeRun) -> Html:
    parts: list[Child] = []
    if run.grid is not None:
        grid = run.grid
        scale = max(1, 900 // max(1, grid.width))
        alt = f"Grid of final samples; captions follow below. {grid.text.get('prompt', '')}".strip()
        shown = (
            tag(
                "img",
                src=grid.uri,
                alt=alt,
                width=grid.width * scale,
                height=grid.height * scale,
                class_="pixels",
            )
            if grid.uri
            else picture(grid, alt)
        )
        parts.append(tag("figure", shown, class_="frame"))
    chosen = pick(run.samples, _MOST_SAMPLES)
    if run.samples:
        left_out = f" {len(chosen)} of {len(run.samples)} shown." if len(chosen) < len(run.samples) else ""
        parts.append(tag("p", f"Each picture with what its file says of how it was drawn.{left_out}", class_="soft"))
        cards = [
            tag(
                "figure",
                picture(image, f"Drawn for: {_prompt(image)}"),
                tag("figcaption", _prompt(image), _chunks(image)),
            )
            for image in chosen
        ]
        parts.append(tag("div", *cards, class_="gallery"))
    return join(*parts)


def _pairs(run: CascadeRun) -> Html:
    chosen = pick(run.pairs, _MOST_PAIRS)
    cards = []
    for base, final in chosen:
        prompt = _prompt(final)
        sides = f"{base.width}×{base.height} from the first stage, {final.width}×{final.height} super-resolved"
        cards.append(
            _side_by_side(base, f"First stage for: {prompt}", final, f"Super-resolved for: {prompt}", prompt, sides)
        )
    left_out = f" {len(chosen)} of {len(run.pairs)} shown." if len(chosen) < len(run.pairs) else ""
    return join(
        tag("p", f"Left: the first stage's picture. Right: what the cascade made of it.{left_out}"),
        tag("div", *cards, class_="gallery wide"),
    )


def _side_by_side(left: Picture, left_alt: str, right: Picture, right_alt: str, caption: str, meta: str) -> Html:
    return tag(
        "figure",
        tag("div", picture(left, left_alt), picture(right, right_alt), class_="pair"),
        tag("figcaption", caption, tag("div", meta, class_="meta")),
    )


def _photos(run: CascadeRun) -> Html:
    cards = []
    for photo in run.photos:
        psnr = "not measured" if photo.psnr_db is None else f"{photo.psnr_db:.1f} dB"
        drift = "not measured" if photo.colour_drift is None else number(photo.colour_drift)
        cards.append(
            _side_by_side(
                photo.original,
                f"Original photograph: {photo.caption}",
                photo.drawn,
                f"Drawn for: {photo.caption}",
                photo.caption,
                f"PSNR {psnr} · colour drift {drift}",
            )
        )
    return join(
        tag("p", "Left: the photograph. Right: what the cascade drew for its caption."),
        tag("div", *cards, class_="gallery wide"),
    )


def _cost(metrics: dict[str, Any]) -> Html:
    total = metrics.get("seconds_total")
    phases = metrics.get("seconds")
    phases = phases if isinstance(phases, dict) else {}
    whole = total if is_number(total) and total > 0 else sum(v for v in phases.values() if is_number(v))
    rows: list[list[Child]] = []
    for name, value in phases.items():
        if is_number(value) and whole > 0:
            share = min(1.0, value / whole)
            fill = tag("span", tag("span", style=f"width:{100 * share:.1f}%"), class_="bar", aria_hidden="true")
            rows.append([name.replace("_", " "), duration(value), percent(share), fill])
        else:
            rows.append([name.replace("_", " "), "not measured", "", ""])
    if not phases:
        rows.append(["each phase", "not measured", "", ""])
    rows.append(["in all", duration(total) if is_number(total) else "not measured", "", ""])
    peak = metrics.get("peak_memory_gb")
    rows.append(["peak memory", f"{number(peak)} GB" if is_number(peak) else "not measured", "", ""])
    for name, value in _flat(
        {k: v for k, v in metrics.items() if k not in ("seconds", "seconds_total", "peak_memory_gb")}
    ):
        rows.append([name.replace("_", " "), value, "", ""])
    return table("Time of each phase and peak memory", ["Measure", "Value", "Share", ""], rows)


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat += _flat(value, f"{name} / ")
        elif value is None:
            flat.append((name, "not measured"))
        else:
            flat.append((name, number(value) if is_number(value) else str(value)))
    return flat


def _commands(run: CascadeRun) -> Html:
    parts = [
        tag("div", tag("h3", phase), tag("pre", command, tabindex=0), class_="command")
        for phase, command in run.commands
    ]
    return join(tag("p", "The commands of this run, in order."), *parts)


def _details(summary: str, content: str) -> Html:
    return tag("details", tag("summary", summary), tag("pre", content, tabindex=0))


def missing_notes(absent: Sequence[Section]) -> Html:
    """The plain list of sections that have no input."""
    return tag("ul", *(tag("li", f"{section.title}: {section.missing}.") for section in absent))
