"""A sweep from its config to its tables: `sweep.csv` and `sweep.json`.

The files depend on checkpoints, prompts, grids and weights alone: a sweep that was killed, gone on with or shared by
several processes writes the same bytes as one that was not. Times and machines stand in `sweep_run.json`.
"""

import csv
import dataclasses
import importlib.metadata
import io
import os
import platform
import time
from typing import Any

from imagen_jax.checks import check_count, check_path
from imagen_jax.errors import UserError
from imagen_jax.evals.scoring import FEW
from imagen_jax.evals.sweeps.measures import Measures, Scorer, combined
from imagen_jax.evals.sweeps.plan import Node, Plan, Point, StageGrid, build_plan
from imagen_jax.evals.sweeps.prompts import PromptList, PromptSource
from imagen_jax.evals.sweeps.units import POLL_S, UNIT, Folder, draw_plan, estimate, read_unit
from imagen_jax.files import as_path, check_content, files_under, locked, make_dirs, read_json, write_json, write_text
from imagen_jax.progress import Progress
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.versions import code_version

CSV, JSON, RUN, RECORD = "sweep.csv", "sweep.json", "sweep_run.json", "sweep_folder.json"
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy", "pillow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Settings of a sweep.

    Args:
      run_dir: cascade directory, or run directory of one stage.
      output_dir: folder of the sweep; several processes with one config share it.
      prompts: what every point draws.
      grids: values to try, for each stage that is not drawn as configured alone.
      measures: metrics of the images, and networks that they need.
      batch_size: images of a unit of work, a multiple of the devices.
    """

    run_dir: str
    output_dir: str
    prompts: PromptSource
    grids: tuple[StageGrid, ...]
    measures: Measures = Measures()
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_path("SweepConfig.run_dir", self.run_dir)
        check_path("SweepConfig.output_dir", self.output_dir)
        check_count("SweepConfig.batch_size", self.batch_size)
        object.__setattr__(self, "grids", tuple(self.grids))
        if not isinstance(self.prompts, PromptSource):
            raise UserError(f"SweepConfig.prompts ({self.prompts!r}) must be prompts, e.g. @prompts.ShapesPrompts()")
        if not self.grids or not all(isinstance(one, StageGrid) for one in self.grids):
            raise UserError(
                f"SweepConfig.grids ({self.grids!r}) must be a tuple of grids, at least one: (@base/plan.StageGrid(),)"
            )


def dry_run(config: SweepConfig, cascade: Cascade | None = None) -> str:
    """Says what a sweep would do; nothing is drawn or written.

    Args:
      config: of the sweep.
      cascade: what draws; None: that of run_dir.
    """
    cascade = cascade or Cascade.load(config.run_dir)
    prompts, plan, folder = _laid_out(config, cascade)
    _check_folder(folder, cascade, write=False)
    found = estimate(plan, folder)
    seconds = (
        f"unknown: no batch was timed yet of {'; '.join(found.untimed)}"
        if found.seconds is None
        else f"about {found.seconds:.0f}, by the batches timed so far, on one process of their machine"
    )
    lines = [
        f"points          {len(plan.points)}",
        f"nodes           {len(plan.nodes)}, for {len(plan.points) * len(cascade.names)} without what is shared",
        f"images          {found.missing} to draw, {found.kept} there already; {len(prompts.prompts)} a node",
        f"seconds         {seconds}",
        f"bytes to come   {found.num_bytes}",
    ]
    return "\n".join([*lines, *_warnings(config, prompts)])


def run_sweep(config: SweepConfig, command: str = "", cascade: Cascade | None = None) -> dict[str, Any]:
    """Draws what is missing, scores it and writes the tables.

    Args:
      config: of the sweep.
      command: the command line, for the page.
      cascade: what draws; None: that of run_dir.

    Returns:
      The content of sweep.json.

    Raises:
      UserError: settings that do not fit the stages, or a folder of another sweep; nothing is drawn then.
    """
    cascade = cascade or Cascade.load(config.run_dir)
    prompts, plan, folder = _laid_out(config, cascade)
    scorer = config.measures.load()
    for warning in _warnings(config, prompts):
        print(warning)
    _check_folder(folder, cascade, write=True)
    drawn = draw_plan(plan, folder)
    scores, scoring_s = _score_all(plan, folder, scorer)
    rows = [_row(point, folder, scores) for point in plan.points]
    result = {
        "version": code_version(),
        "stages": [
            {"name": one.stage.name, "checkpoint": one.checkpoint, "config_hash": one.config_hash}
            for one in cascade.stages
        ],
        "prompts": {**prompts.about, "number": len(prompts.prompts), "sha256": prompts.digest},
        "metrics": list(config.measures.metrics),
        "weights": scorer.facts(),
        "points": rows,
    }
    write_text(os.path.join(folder.path, CSV), as_csv(result))
    write_json(os.path.join(folder.path, JSON), result, end="\n")
    run = {"command": command, **_times(plan, folder), "scoring_s": scoring_s, "versions": _versions()}
    write_json(os.path.join(folder.path, RUN), run, end="\n")
    failed = sum(bool(row["failed"]) for row in rows)
    print(f"{len(plan.points)} points in {folder.path}; this process drew {drawn} images; {failed} points failed")
    return result


def as_csv(result: dict[str, Any]) -> str:
    """The points of a sweep as a table, in the order of the grids.

    Args:
      result: content of sweep.json.
    """
    rows: list[dict[str, Any]] = result["points"]
    stages = [stage["name"] for stage in result["stages"]]
    axes = [(stage, axis) for stage in stages for axis in rows[0]["settings"][stage]]
    names = sorted({name for row in rows for name in row["scores"]})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["key", *(f"{stage}.{axis}" for stage, axis in axes), "images", *names, "failed", "warnings"])
    for row in rows:
        cells = [_cell(row["settings"][stage][axis]) for stage, axis in axes]
        found = [_cell(row["scores"].get(name)) for name in names]
        writer.writerow([row["key"], *cells, row["images"], *found, row["failed"], "; ".join(row["warnings"])])
    return out.getvalue()


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _laid_out(config: SweepConfig, cascade: Cascade) -> tuple[PromptList, Plan, Folder]:
    if cascade.stages[0].stage.low_res_size is not None:
        raise UserError(
            f"stage {cascade.names[0]!r} enlarges images and a sweep gives it none; give a cascade with its base stage"
        )
    prompts = config.prompts.read()
    config.measures.check(prompts)
    plan = build_plan(cascade, config.grids, prompts)
    batch_size = min(config.batch_size, len(prompts.prompts))
    return prompts, plan, Folder(path=config.output_dir, prompts=prompts, batch_size=batch_size)


def _warnings(config: SweepConfig, prompts: PromptList) -> list[str]:
    if "fid" in config.measures.metrics and len(prompts.prompts) < FEW:
        return [f"{len(prompts.prompts)} images a point: FID is biased upwards below {FEW}"]
    return []


def _check_folder(folder: Folder, cascade: Cascade, write: bool) -> None:
    """Refuses the folder of another sweep; grids may change, what they share is kept."""
    wanted: dict[str, Any] = {
        "checkpoints": [one.checkpoint for one in cascade.stages],
        "prompts": folder.prompts.digest,
        "batch_size": folder.batch_size,
    }
    path = as_path(folder.path) / RECORD
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError("no object")
    except FileNotFoundError:
        there = files_under(folder.path)
        if RECORD in there:  # Another process has just begun this sweep.
            return _check_folder(folder, cascade, write)
        if any(not name.startswith(RECORD) for name in there):
            raise UserError(f"{folder.path} holds files of something else; choose another output_dir") from None
        if write:
            make_dirs(folder.path)
            write_json(path, wanted)
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); choose another output_dir") from error
    other = [name for name, value in wanted.items() if found.get(name) != value]
    if other:
        raise UserError(
            f"{folder.path} holds another sweep: its {' and '.join(other)} differ; choose another output_dir, or "
            "remove that folder"
        )
    return None


def _score_all(plan: Plan, folder: Folder, scorer: Scorer) -> tuple[dict[str, dict[str, Any]], float]:
    """Scores of each node of a point that did not fail, and their seconds; processes that share the sweep share this.

    A file holds one metric of one node, so that a metric that is added is computed alone.
    """
    place = os.path.join(folder.path, "scores")
    make_dirs(place)
    keys = scorer.keys(folder.prompts)
    nodes = {point.node.key: point.node for point in plan.points if not folder.failure(point.node)}
    found: dict[str, dict[str, Any]] = {}
    seconds = 0.0
    with Progress(len(nodes), "score", "point") as progress:
        while len(found) < len(nodes):
            before = len(found)
            for key, node in nodes.items():
                if key in found:
                    continue
                paths = {name: os.path.join(place, key, f"{name}-{digest}.json") for name, digest in keys.items()}
                with locked(os.path.join(folder.path, "claims", f"score-{key}.lock")) as held:
                    if held:
                        _score_node(node, folder, scorer, paths)
                if not _lacking(paths):
                    parts = [_read_scores(path) for path in paths.values()]
                    found[key], seconds = combined(parts), seconds + sum(part["seconds"] for part in parts)
                    progress.update()
            if len(found) == before:
                time.sleep(POLL_S)  # Others score what is left.
    return found, seconds


def _lacking(paths: dict[str, str]) -> list[str]:
    return [name for name, path in paths.items() if not as_path(path).is_file()]


def _score_node(node: Node, folder: Folder, scorer: Scorer, paths: dict[str, str]) -> None:
    lacking = _lacking(paths)
    if not lacking:
        return
    cache = os.path.join(folder.path, "scores")
    start = time.perf_counter()
    made = scorer.score(folder.of_node(node), folder.image_names(), folder.prompts, lacking, cache)
    seconds = (time.perf_counter() - start) / len(made)
    make_dirs(os.path.dirname(paths[lacking[0]]))
    for name, one in made.items():
        write_json(paths[name], {**one, "seconds": seconds})


def _read_scores(path: str) -> dict[str, Any]:
    try:
        found = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it: the scores are computed again") from error
    wanted = {"scores": {...: float}, "warnings": [str], "samples": [dict], "samples_by": str, "seconds": float}
    check_content(path, found, wanted, "remove it: the scores are computed again")
    return dict(found)


def _row(point: Point, folder: Folder, scores: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found = scores.get(point.node.key, {"scores": {}, "warnings": [], "samples": [], "samples_by": ""})
    return {
        "key": point.node.key,
        "settings": point.settings,
        "images": len(folder.prompts.prompts),
        **found,
        "scores": {name: float(f"{value:.6g}") for name, value in found["scores"].items()},
        "failed": folder.failure(point.node),
    }


def _versions() -> dict[str, str]:
    """Versions of Python and of the packages that images and scores depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _times(plan: Plan, folder: Folder) -> dict[str, Any]:
    """Seconds of drawing by stage, and the devices that drew."""
    seconds: dict[str, float] = {}
    devices: set[str] = set()
    for node in plan.nodes:
        for unit in range(len(folder.units)):
            if (as_path(folder.of_unit(node, unit)) / UNIT).is_file():
                facts = read_unit(folder, node, unit)
                name = node.cascade.names[0]
                seconds[name] = seconds.get(name, 0.0) + facts["seconds"]
                devices.add(facts["device"])
    return {"seconds": seconds, "devices": sorted(devices), "nodes": len(plan.nodes)}
