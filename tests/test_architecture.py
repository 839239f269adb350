"""The rooms of the package and the doors between them, as docs/architecture.md draws them.

Every import is read from the source, also those inside functions; an import through no door fails.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "imagen_jax"

# Any room may use these.
COMMON = {"array_records", "checks", "errors", "files", "image_files", "progress", "streams", "typing", "versions"}
# What else of the package a room may import: a room, or one module of a room.
DOORS: dict[str, set[str]] = {
    "array_records": set(),
    "checks": set(),
    "errors": {"streams"},
    "files": set(),
    "image_files": set(),
    "progress": set(),
    "streams": set(),
    "typing": set(),
    "versions": set(),
    "gin_config": set(),
    "safety": set(),
    "diffusion": set(),
    "models": set(),
    "sharding": set(),
    "cost": {"sharding"},
    # Pretrained encoders are sharded over the mesh as they load.
    "text": {"sharding"},
    # Foreign checkpoints: a network, its formulas, and the readers of safetensors.
    "interop": {"models", "diffusion", "text", "stage"},
    # A network is called on a mesh.
    "stage": {"models", "diffusion", "sharding"},
    # A record names the parts of a stage; the gin text of older runs is read as data.
    "checkpoints": {"stage", "diffusion", "models", "text", "sharding", "gin_config"},
    "data": {"text"},
    "report": set(),
    # Corpus and embedding store once more, by Apache Beam.
    "beam": {"data", "text"},
}
# What leaves the house is what was trained.
DOORS["export"] = {"stage", "models", "text", "sharding", "checkpoints"}
# Training may start from what was trained, wherever it lies.
DOORS["finetune"] = {"stage", "text", "sharding", "checkpoints", "export"}
LOADING = {"stage", "diffusion", "models", "text", "sharding", "cost", "checkpoints", "gin_config", "finetune"}
DOORS["train"] = LOADING - {"gin_config"} | {"data"}
# Drawing and measuring meet training at its hooks alone.
DOORS["sampling"] = LOADING | {"train.hooks", "export"}
# evals stands on sampling; it also reads corpora and COCO's captions, and knows what the drawn shapes are.
DOORS["evals"] = LOADING | {
    "sampling",
    "train.hooks",
    "data.records",
    "data.shapes",
    "data.shapes_canvas",
    "data.shapes_captions",
    "data.shapes_words",
    "data.shapes_draw",
    "data.shapes_scene",
    "data.tfds_folder",
}
DOORS["report"] = {"evals.sampler_study", "checkpoints.folders", "checkpoints.marks", "train.ledger"}
# What people see is written as the report is; their votes have the intervals of metrics.
DOORS["ratings"] = {"report.document", "report.markup", "report.style", "evals.metrics.bootstrap"}
# What is drawn by HTTP.
DOORS["serving"] = {"sampling", "safety", "stage.sampling_config"}
DOORS["planning"] = LOADING | {"sampling", "train"}
# The modes hold the joins. They work where Beam is not installed; the scripts in data/ call them.
DOORS["commands"] = set(DOORS) - {"beam"}
DOORS["main"] = {"commands"}

# The floors from the ground up.
FLOORS = (
    ("streams", "typing", "versions"),
    ("errors", "files"),
    ("array_records", "checks", "image_files", "progress"),
    ("gin_config", "diffusion", "models", "safety", "sharding"),
    ("cost", "text"),
    ("stage", "data"),
    ("checkpoints", "beam", "interop"),
    ("export",),
    ("finetune",),
    ("train",),
    ("sampling",),
    ("evals", "planning", "serving"),
    ("report",),
    ("ratings",),
    ("commands",),
    ("main",),
)

# Libraries that live in some places only: library: the modules or rooms of the package that may import it.
TENSORFLOW = {"data"}
PLACES: dict[str, set[str]] = {
    "apache_beam": {"beam"},
    "tensorflow": TENSORFLOW,
    "tensorflow_text": TENSORFLOW,
    "tensorflow_datasets": TENSORFLOW,
    "seqio": TENSORFLOW,
    "flax.linen": {"models", "text", "evals.features"},
    "gin": {"gin_config"},
    "ml_collections": set(),
    "nudenet": {"safety"},
    "c2pa": {"safety"},
    "torch": set(),
    # Files are data: reading one must not run it.
    "pickle": set(),
}
# Folders beside the package that nothing in it may import, nor the corpus scripts each other's neighbours.
OUTSIDE = {"launch", "data", "tests", "configs"}


def imports(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported; `package` is where relative imports start."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])


def within(name: str, places: set[str]) -> bool:
    """Whether a dotted name is one of `places` or lies in one."""
    return any(name == place or name.startswith(place + ".") for place in places)


def violations(root: Path) -> list[str]:
    """Every import under `root` that goes through no door, as "file:line: what"."""
    found = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(root).with_suffix("").parts)
        own = ".".join(part for part in parts[1:] if part != "__init__")
        room = own.split(".")[0]
        for line, name in imports(ast.parse(path.read_text()), parts[:-1]):
            problem = _problem(own, room, name)
            if problem:
                found.append(f"{path.relative_to(root)}:{line}: {problem}")
    for path in sorted((root / "data").rglob("*.py")):
        for line, name in imports(ast.parse(path.read_text()), ["data"]):
            if within(name, {"launch", "tests", "torch"}):
                found.append(f"{path.relative_to(root)}:{line}: a corpus script may not import {name}")
    return found


def _problem(own: str, room: str, name: str) -> str | None:
    if within(name, OUTSIDE):
        return f"nothing in the package imports {name.split('.')[0]}/"
    for library, places in PLACES.items():
        if within(name, {library}) and not within(own, places):
            return f"{library} is for {', '.join(sorted(places)) or 'no part of the package'}"
    if name == PACKAGE or not name.startswith(PACKAGE + "."):
        return f"import a module of {PACKAGE}, not all of it" if name == PACKAGE else None
    if room and room not in DOORS:
        return f"room {room} has no doors yet; add it to DOORS and to docs/architecture.md"
    target = name.removeprefix(PACKAGE + ".")
    # The package itself offers the cascade, and loads it when it is asked for.
    doors = DOORS.get(room, set()) | COMMON | ({room} if room else {"sampling.cascade"})
    if not within(target, doors):
        return f"there is no door from {room or PACKAGE} to {target}"
    return None


def test_every_import_goes_through_a_door():
    assert violations(REPOSITORY) == []


def test_every_room_has_doors():
    rooms = {path.stem for path in (REPOSITORY / PACKAGE).iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} == set(DOORS)


def test_every_door_leads_down():
    """Rooms stand on floors; what a room imports is on a floor below it, so no circle can be drawn."""
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    assert set(floor) == set(DOORS)
    for room, doors in DOORS.items():
        above = sorted(door for door in doors if floor[door.split(".")[0]] >= floor[room])
        assert not above, f"{room} may import {above}, which are not below it"


ALLOWED = """
models/unet.py: import flax.linen as nn
models/layers.py: from flax import linen as nn
models/unet2.py: from imagen_jax.models import layers
models/unet3.py: from . import layers
models/unet4.py: from imagen_jax.errors import UserError
data/pipeline.py: import tensorflow as tf
data/join.py: from imagen_jax.text.store.reader import EmbeddingStore
sampling/cascade.py: from imagen_jax.checkpoints.checkpoints import load_params
sampling/cascade2.py: from imagen_jax.checkpoints import checkpoints
sampling/preview_hook.py: from imagen_jax.train.hooks import Hook
commands/parts/training.py: from imagen_jax.sampling import preview_hook
evals/judge.py: from imagen_jax.data import shapes
evals/evaluate_hook.py: from imagen_jax.train.hooks import Hook
evals/features/net.py: from flax import linen as nn
beam/build.py: from apache_beam.options import pipeline_options
beam/build2.py: from imagen_jax.data import builder
gin_config.py: import gin
commands/report.py: from imagen_jax.report import page
commands/parts/run.py: from imagen_jax.sampling.cascade import Cascade
commands/train.py: from imagen_jax.commands.parts import command
main.py: from imagen_jax import commands
train/loop.py: import datasets_of_ours
"""

FORBIDDEN = """
models/unet.py: from imagen_jax.diffusion import process
models/unet2.py: from imagen_jax import diffusion
models/unet3.py: from ..diffusion import process
models/unet4.py: from .. import diffusion
diffusion/process.py: import imagen_jax.models.unet
diffusion/losses.py: from flax import linen as nn
diffusion/inner.py: def f(): from imagen_jax.stage.spec import Stage
train/step.py: from flax.linen import unbox
train/loop.py: from imagen_jax.report import page
train/metrics.py: import tensorflow.summary
sampling/cascade.py: from imagen_jax.train.loop import run
sampling/cascade2.py: from imagen_jax.train import loop
sampling/cascade3.py: from imagen_jax import train
sampling/preview_hook.py: from imagen_jax.train.config import PreviewConfig
sampling/preview_hook.py: from imagen_jax.train.metrics import MetricWriter
sampling/preview_hook.py: from imagen_jax.data.pipeline import BatchIterator
train/loop.py: from imagen_jax.sampling.preview_hook import PreviewHook
train/loop.py: def f(): from imagen_jax.sampling import loading
train/loop.py: from imagen_jax.commands import training
text/store.py: from imagen_jax.data import records
text/encoder.py: import seqio
text/tokenizer.py: import seqio
stage.py: from imagen_jax.text import encoder
evals/judge.py: from imagen_jax.data import pipeline
evals/evaluate_hook.py: from imagen_jax.train.config import EvaluateConfig
evals/fid.py: import torch
evals/metrics/fid.py: from flax import linen as nn
evals/features/torch_file.py: import pickle
beam/items.py: from pickle import loads
train/config.py: import gin
data/build.py: from ml_collections import ConfigDict
data/launching.py: from launch import local
data/scripts.py: import data.build_shapes
main.py: import torch.nn
main.py: import gin
main.py: from imagen_jax.beam import build
main.py: from imagen_jax.report import page
commands/parts/gin_flags.py: import gin
commands/at_scale.py: from imagen_jax.beam import build
commands/loop.py: from imagen_jax.main import main
train/loop2.py: from imagen_jax.commands import train
data/at_scale.py: import apache_beam as beam
evals/all.py: import imagen_jax
cellar/wine.py: from imagen_jax.train import loop
"""


def put(root: Path, line: str) -> str:
    """Writes one "path: source" line as the only module of a package under `root`; returns its path."""
    name, source = line.split(": ", 1)
    path = root / PACKAGE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("import os\n" + source + "\n")
    return f"{PACKAGE}/{name}"


@pytest.mark.parametrize("line", ALLOWED.strip().splitlines())
def test_doors_are_open(tmp_path, line):
    put(tmp_path, line)
    assert violations(tmp_path) == []


@pytest.mark.parametrize("line", FORBIDDEN.strip().splitlines())
def test_walls_hold(tmp_path, line):
    name = put(tmp_path, line)
    found = violations(tmp_path)
    assert len(found) == 1 and found[0].startswith(f"{name}:2: "), found


@pytest.mark.parametrize("source", ["import torch", "from launch import local"])
def test_corpus_scripts_have_walls_too(tmp_path, source):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "build.py").write_text(source + "\n")
    assert len(violations(tmp_path)) == 1
