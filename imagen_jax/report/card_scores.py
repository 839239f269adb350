"""Evaluations of a run as tables of its model card, each with the protocol that its numbers hold under."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.files import AnyPath
from imagen_jax.report.data import finite, is_number, read_evaluation, read_json
from imagen_jax.report.markdown import Markdown, Part, line
from imagen_jax.report.markup import number
from imagen_jax.report.scores import CATEGORIES

_MOST_ROWS = 60
_ROUNDED = "Numbers are rounded to four digits; {} holds all of them."
# Scores by which one point of a sweep stands for it, the first that is there, and the side that is better.
_DECIDING = (("fid", min), ("matches", max), ("clip_score", max))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One evaluation.

    Args:
      title: heading of its table.
      about: the protocol, a paragraph each.
      header, rows: the table; no rows: nothing was scored.
      results: entries of the header's model-index.
    """

    title: Part
    about: Sequence[Markdown]
    header: Sequence[Part]
    rows: Sequence[Sequence[Part]]
    results: Sequence[Mapping[str, Any]] = ()


Reader = Callable[[AnyPath, str], Measured]


def read_measured(run_dir: AnyPath, config_hash: str) -> tuple[list[Measured], list[str]]:
    """All evaluations of a run directory and of the folders in it, and the kinds of which there is none.

    Args:
      run_dir: of the cascade or stage.
      config_hash: of its stages, joined; evaluations that note another one say so.

    Raises:
      UserError: a file is malformed.
    """
    folders = sorted(one for one in run_dir.iterdir() if one.is_dir())
    suites = run_dir / "suites"
    of_suites = sorted(one for one in suites.iterdir() if one.is_dir()) if suites.is_dir() else []
    found: list[Measured] = []
    absent = []
    for kind, name, places, reader in (
        ("alignment of drawn shapes with their captions", "eval.json", [run_dir], _alignment),
        ("scores of images, such as FID", "image_scores.json", [run_dir, *folders], _image_scores),
        ("prompt suites", "suite_scores.json", of_suites, _suite),
        ("sweeps of sampling settings", "sweep.json", [run_dir, *folders], _sweep),
        ("preferences of human raters", "ratings.json", [run_dir, *folders], _ratings),
    ):
        of_kind = [_read(place / name, reader, config_hash) for place in places if (place / name).is_file()]
        found += of_kind
        if not of_kind:
            absent.append(kind)
    return found, absent


def _read(path: AnyPath, reader: Reader, config_hash: str) -> Measured:
    try:
        return reader(path, config_hash)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is malformed ({error!r}); write it anew with the phase that made it") from error


def _drawn_with(path: AnyPath, noted: Any, config_hash: str) -> Markdown:
    """Tells which stages were measured, and where the numbers stand."""
    rounded = _ROUNDED.format(path.name)
    if not isinstance(noted, str):
        return line(f"{path.name} does not note which checkpoints drew the images. {rounded}")
    other = "" if noted == config_hash else " They are not those described here, and the header leaves the scores out."
    return line(f"Drawn by the stages of config {noted}.{other} {rounded}")


def _result(kind: str, name: str, metrics: Sequence[tuple[str, str, float]]) -> dict[str, Any]:
    """An entry of model-index.

    Args:
      kind, name: of the data set.
      metrics: (type, name, value) of each.
    """
    return {
        "task": {"type": "text-to-image"},
        "dataset": {"type": kind, "name": name},
        "metrics": [{"type": one, "value": finite(value), "name": label} for one, label, value in metrics],
    }


def _alignment(path: AnyPath, config_hash: str) -> Measured:
    score = read_evaluation(path)
    assert score is not None
    names = list(score.alignment)
    rows: list[list[Part]] = [
        [number(weight), *(number(score.alignment[name][index]) for name in names)]
        for index, weight in enumerate(score.guidance_weights)
    ]
    levels = (("empty prompt", score.unconditional), ("chance", score.chance))
    for label, value in levels:
        if value is not None and "single_both" in names:
            rows.append([label, *(number(value) if name == "single_both" else "" for name in names)])
    best, noted = score.best_guidance_weight, read_json(path, dict).get("config_hash")
    prompts = f"{number(score.num_prompts)} prompts" if score.num_prompts is not None else "Prompts"
    about = [
        line(
            f"{prompts} worded like the captions of the corpus of drawn shapes, the same prompts and noise at each "
            "guidance weight of the base stage. A program that sees the picture alone reads its shapes, and the "
            "figures are the shares of pictures that show what their prompt says. Further objects count as faults."
        ),
        _drawn_with(path, noted, config_hash),
    ]
    results = []
    if best in score.guidance_weights:
        about.insert(1, line(f"The best guidance weight is {number(best)}, by the mean of the deciding categories."))
        at = score.guidance_weights.index(best)
        values = [(name, score.alignment[name][at]) for name in names]
        told = [(one, f"{CATEGORIES.get(one, one)}, guidance weight {best:g}", v) for one, v in values if v is not None]
        if told and noted in (None, config_hash):
            results.append(_result("imagen_jax-shapes", f"drawn shapes, {prompts}, exact judge", told))
    header = ["Guidance weight", *(CATEGORIES.get(name, name) for name in names)]
    return Measured(title="Alignment with the caption", about=about, header=header, rows=rows, results=results)


def _image_scores(path: AnyPath, config_hash: str) -> Measured:
    content = read_json(path, dict)
    names = list(content["spread"])
    rows: list[list[Part]] = []
    results = []
    for one in content["scores"]:
        protocol = one["protocol"]
        captions = "one an image" if protocol["one_per_image"] else "any of an image"
        reference = f"{protocol['split']}, {'images of the chosen captions' if protocol['matched'] else 'all images'}"
        resize = f"{protocol['geometry']}, {protocol['filter']} to {protocol['image_size'] or 'no other size'}, then "
        rows.append(
            [protocol["name"], *(number(finite(one[name])) for name in names), number(one["num_generated"]),
             number(one["num_reference"]), reference, f"{captions}, seed {protocol['seed']}",
             f"{resize}{protocol['resize']}", ", ".join(protocol["assumed"]), "; ".join(one["warnings"])]
        )  # fmt: skip
        of_what = f"protocol {protocol['name']}, {one['num_generated']} images"
        metrics = [(name, f"{name}, {of_what}", one[name]) for name in names]
        results.append(_result(f"coco-{protocol['split']}", f"reference of {protocol['name']}", metrics))
    weights = ", ".join(f"{kind}, weights of sha256 {one}" for kind, one in content["weights_sha256"].items())
    spans = ", ".join(f"{number(finite(one))} ({name})" for name, one in content["spread"].items())
    about = [
        line(f"Networks: {weights}. Each row is a protocol; scores of one set of images under them span {spans}. "
             "Columns say what a protocol asks for; what its publication leaves open stands under assumed."),
        _drawn_with(path, None, config_hash),
    ]  # fmt: skip
    tail = ["Images", "Reference images", "Reference", "Captions", "Resize", "Assumed", "Warnings"]
    return Measured(
        title="Scores of images", about=about, header=["Protocol", *names, *tail], rows=rows, results=results
    )


def _numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a JSON object and of those within it, by their places."""
    for key, one in value.items() if isinstance(value, Mapping) else ():
        where = f"{place} / {key}" if place else str(key)
        if is_number(one):
            yield where, finite(one)
        yield from _numbers(one, where)


def _suite(path: AnyPath, config_hash: str) -> Measured:
    content = read_json(path, dict)
    suite = str(content["suite"])
    found = list(_numbers(content.get("summary") or content.get("scores")))
    command = content.get("command")
    scorer = f"Scored by {' '.join(map(str, command))}." if command else "Scored by the exact judge of drawn shapes."
    about = [
        line(f"Suite {suite}, in folder {path.parent.name}: {number(content['num_prompts'])} prompts, "
             f"{number(content['num_images_per_prompt'])} images a prompt, first seed {number(content['seed'])}. "
             f"{scorer if found else 'Drawn and not scored.'}"),
        _drawn_with(path, content["config_hash"], config_hash),
    ]  # fmt: skip
    # Counts are no scores.
    scores = [(place, place, value) for place, value in found if not place.split(" / ")[-1].startswith("num_")]
    name = f"{suite}, {content['num_prompts']} prompts, {content['num_images_per_prompt']} images each"
    return Measured(
        title=f"Prompt suite {suite}",
        about=[*about, *_cut(found)],
        header=["Figure", "Value"],
        rows=[[place, number(value)] for place, value in found[:_MOST_ROWS]],
        results=[_result(suite, name, scores[:_MOST_ROWS])] if scores and content["config_hash"] == config_hash else [],
    )


def _cut(rows: Sequence[Any]) -> list[Markdown]:
    return [line(f"The first {_MOST_ROWS} of {number(len(rows))} rows.")] if len(rows) > _MOST_ROWS else []


def _sweep(path: AnyPath, config_hash: str) -> Measured:
    content = read_json(path, dict)
    run = read_json(path.parent / "sweep_run.json", dict) or {}
    points = content["points"]
    axes = [(stage, axis) for stage, settings in points[0]["settings"].items() for axis in settings]
    varied = [(s, a) for s, a in axes if len({str(point["settings"][s][a]) for point in points}) > 1]
    scores = sorted({name for point in points for name in point["scores"]})
    rows: list[list[Part]] = []
    for point in points[:_MOST_ROWS]:
        settings = [_shown(point["settings"][s][a]) for s, a in varied]
        notes = "; ".join([*filter(None, [point["failed"]]), *point["warnings"]])
        rows.append([*settings, number(point["images"]), *(number(point["scores"].get(n)) for n in scores), notes])
    fixed = [f"{s} {a} {_shown(points[0]['settings'][s][a])}" for s, a in axes if (s, a) not in varied]
    prompts = ", ".join(f"{name} {value}" for name, value in _flat(content["prompts"]))
    weights = ", ".join(f"{name} {value}" for name, value in content["weights"].items())
    about = [line(f"Each row is a point, drawn from the same prompts and noise. Prompts: {prompts}.")]
    about += [line(f"The same in all points: {', '.join(fixed)}.")] if fixed else []
    about += [line(f"Weights of the networks that score: {weights}.")] if weights else []
    about += [line(f"Drawn with version {content['version']}", *_told(run), ".")]
    noted = "-".join(str(stage["config_hash"]) for stage in content["stages"])
    header = [*(f"{s} {a}" for s, a in varied), "Images", *scores, "Notes"]
    return Measured(
        title="Sweep of sampling settings",
        about=[*about, _drawn_with(path, noted, config_hash), *_cut(points)],
        header=header,
        rows=rows,
        results=_best_point(points, varied, str(content["prompts"].get("source"))) if noted == config_hash else [],
    )


def _shown(value: Any) -> str:
    return number(value) if is_number(value) else str(value)


def _told(run: Mapping[str, Any]) -> list[Part]:
    """Devices and seconds of a sweep, where it notes them."""
    devices = ", ".join(map(str, run.get("devices") or ()))
    seconds = ", ".join(f"{stage} {number(finite(one))} s" for stage, one in (run.get("seconds") or {}).items())
    return [f" on {devices}" if devices else "", f", in {seconds}" if seconds else ""]


def _best_point(points: Sequence[Any], varied: Sequence[tuple[str, str]], source: str) -> list[dict[str, Any]]:
    """The point with the best score, for model-index."""
    for name, better in _DECIDING:
        scored = [point for point in points if name in point["scores"]]
        if scored:
            best = better(scored, key=lambda point: point["scores"][name])
            at = ", ".join(f"{s} {a} {_shown(best['settings'][s][a])}" for s, a in varied)
            told = [(one, f"{one} at {at}" if at else one, value) for one, value in best["scores"].items()]
            return [_result(f"sweep-{source}", f"{source}, {best['images']} images, best {name} of a sweep", told)]
    return []


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _ratings(path: AnyPath, config_hash: str) -> Measured:
    content = read_json(path, dict)
    first, second = content["models"]
    shown = (("first", first), ("indifferent", "neither"), ("second", second), ("score", "score"))
    rows: list[list[Part]] = []
    for question, one in content["questions"].items():
        for category, figures in one["categories"].items():
            cells: list[Part] = [question, category, number(figures["num_prompts"]), number(figures["num_votes"])]
            cells += [_interval(figures.get(key)) for key, _ in shown]
            rows.append([*cells, number(one["alpha"])])
    about = [
        line(f"Study {content['study']}: {number(content['num_ratings'])} answers of {number(content['num_raters'])} "
             f"raters on {first} and {second}. Shares of votes from 0 to 1, mean scores from 0 to 100, with the "
             "interval of 95 % by bootstrap over prompts. Alpha is Krippendorff's, over all categories."),
        _drawn_with(path, None, config_hash),
        *_cut(rows),
    ]  # fmt: skip
    header = ["Question", "Category", "Prompts", "Votes", *(name for _, name in shown), "Alpha"]
    return Measured(title="Human ratings", about=about, header=header, rows=rows[:_MOST_ROWS])


def _interval(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    value, low, high = (number(finite(figure[name])) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
