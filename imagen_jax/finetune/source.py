"""Trained parameters wherever they lie, to start from: a run's checkpoint, a run of LoRA, a stage of a bundle.

A run of LoRA keeps in each checkpoint the factors alone, and beside stage.json

    lora.json        rank, alpha and targets; the base: name of its stage, its checkpoint, paths it was found at

The base is known by its checkpoint's name, which holds a digest (`checkpoints.fingerprint`) and is that of the bundle
made of it too; another one is refused. Loaded as a stage, such a run is its base with the factors merged into it.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import jax

from imagen_jax.checkpoints import checkpoints, folders
from imagen_jax.checkpoints.trained_stage import StageRecord, TrainedStage, Weights
from imagen_jax.checkpoints.trees import named_leaves
from imagen_jax.errors import UserError, listed
from imagen_jax.export.bundle import is_bundle, load_bundle, read_records
from imagen_jax.files import AnyPath, StrPath, as_path, is_remote
from imagen_jax.finetune import lora
from imagen_jax.finetune.lora import LoraConfig
from imagen_jax.sharding import rules
from imagen_jax.stage.spec import Stage
from imagen_jax.text.store.format import fingerprint_differences
from imagen_jax.typing import PyTree

RECORD = "lora.json"
SCHEMA = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where trained parameters are.

    Args:
      path: run directory, or bundle.
      stage: name of the stage.
      checkpoint: which parameters: `checkpoints.fingerprint` of what they are from.
    """

    path: str
    stage: str
    checkpoint: str

    @classmethod
    def find(cls, path: str, stage: str, checkpoint: str | None = None) -> "Source":
        """Finds a stage.

        Args:
          path: run directory of a stage, or bundle.
          stage: its name, by which it is chosen in a bundle of several.
          checkpoint: which parameters; None: the newest of a run, those of a bundle.

        Raises:
          UserError: nothing trained there, or not these parameters.
        """
        if is_bundle(path):
            found = {record.stage.name: word for record, word in read_records(path)}
            name = stage if stage in found else next(iter(found))
            if name != stage and len(found) > 1:
                raise UserError(f"{path} has no stage {stage!r}; it has {', '.join(found)}")
            source = cls(path=path, stage=name, checkpoint=found[name])
        else:
            step = None if checkpoint is None else _step_of(path, checkpoint)
            place = folders.existing(path, step)
            name = StageRecord.read(place).stage.name
            word = checkpoints.fingerprint(path, folders.step_of(place))
            source = cls(path=path, stage=name, checkpoint=word)
        if checkpoint not in (None, source.checkpoint):
            raise UserError(f"{path} has the checkpoint {source.checkpoint}, but {checkpoint} is wanted; restore that")
        return source

    def _place(self) -> AnyPath:
        return folders.checkpoint_dir(self.path, _step_of(self.path, self.checkpoint))

    def record(self) -> StageRecord:
        """Settings of the stage, without its parameters."""
        if is_bundle(self.path):
            return next(record for record, _ in read_records(self.path) if record.stage.name == self.stage)
        return StageRecord.read(self._place())

    def load(self, ema: bool = True) -> TrainedStage:
        """The stage with its parameters on the host, of LoRA merged.

        Args:
          ema: the averaged parameters (True), or those that were being trained.

        Raises:
          UserError: they changed meanwhile or are damaged, or a bundle is asked for what it does not hold.
        """
        if not is_bundle(self.path):
            return load_checkpoint(self._place(), ema=ema)
        if not ema:
            raise UserError(f"{self.path} is a bundle, which holds averaged parameters alone; set init_ema = True")
        return next(one for one in load_bundle(self.path) if one.stage.name == self.stage)

    def restore(self, abstract: PyTree, ema: bool = True) -> PyTree:
        """The parameters laid out over devices.

        Args:
          abstract: shapes, dtypes and shardings wanted.
          ema: as in `load`.

        Raises:
          UserError: as `load`; or they are of another network.
        """
        if not is_bundle(self.path) and not is_adapted(self._place()):
            return checkpoints.restore_params(self.path, abstract, _step_of(self.path, self.checkpoint), ema)
        host = self.load(ema).weights.host
        checkpoints.check_same({"params": abstract}, {"params": host}, as_path(self.path))
        return jax.tree.map(
            lambda leaf, like: jax.make_array_from_callback(like.shape, like.sharding, lambda index: leaf[index]),
            host,
            abstract,
        )


def _step_of(path: str, checkpoint: str) -> int:
    """The step in a checkpoint's word."""
    name = checkpoint.rpartition("-")[0]
    if not name.removeprefix("checkpoint_").isdecimal():
        raise UserError(f"{checkpoint!r} is no checkpoint that a run wrote; it cannot be looked for in {path}")
    return int(name.removeprefix("checkpoint_"))


def check_fits(source: Source, stage: Stage, text_fingerprint: Mapping[str, Any]) -> None:
    """Raises one UserError that names all in which a run's network and text encoder differ from those of its source.

    Args:
      source: what the run starts from.
      stage: that the run trains.
      text_fingerprint: of the run's encoder.
    """
    record = source.record()
    ours, theirs = (
        named_leaves(rules.unbox(jax.eval_shape(one.init, jax.random.key(0)))) for one in (stage, record.stage)
    )
    lines = [f"text {line}" for line in fingerprint_differences(text_fingerprint, record.text_fingerprint)]
    for name in sorted(ours.keys() | theirs.keys()):
        got, expected = (str(list(tree[name].shape)) if name in tree else "nothing" for tree in (ours, theirs))
        lines += [f"{name}: got {got}, there it is {expected}"] * (got != expected)
    if lines:
        raise UserError(
            f"the run cannot start from {source.path} ({'; '.join(lines)}): a network starts from parameters of its "
            "own shapes that read the same text; set both as in the config.gin there"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraRecord:
    """Content of lora.json.

    Args:
      config: rank, alpha, targets.
      base: where the base was; `base.checkpoint` is what must be found.
      paths: places to look for it, from this machine's view.
    """

    config: LoraConfig
    base: Source
    paths: tuple[str, ...] = ()

    def content(self, checkpoint: AnyPath) -> bytes:
        """The file's bytes, for a checkpoint's directory, from which paths are noted too."""
        path = self.base.path
        paths = [path]
        if not is_remote(path):
            beside = [] if is_remote(checkpoint) else [os.path.relpath(path, checkpoint)]
            paths = [*beside, os.path.abspath(path)]
        data = {
            "schema": SCHEMA,
            "lora": dataclasses.asdict(self.config),
            "base": {"stage": self.base.stage, "checkpoint": self.base.checkpoint, "paths": paths},
        }
        return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()

    @classmethod
    def read(cls, checkpoint: AnyPath) -> "LoraRecord":
        """The record of a checkpoint of LoRA.

        Raises:
          UserError: it is damaged or of a newer version.
        """
        path = checkpoint / RECORD
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] != SCHEMA:
                raise UserError(f"{path} has schema {data['schema']!r}, this program reads {SCHEMA}; update imagen_jax")
            settings, base = data["lora"], data["base"]
            noted = [str(one) for one in base["paths"]]
            near = [one if is_remote(one) or is_remote(checkpoint) else str(checkpoint / one) for one in noted]
            paths = tuple(one if is_remote(one) else os.path.normpath(one) for one in near)
            config = LoraConfig(**{**settings, "targets": tuple(settings["targets"])})
            source = Source(path=paths[-1], stage=str(base["stage"]), checkpoint=str(base["checkpoint"]))
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); restore it from a copy") from error
        return cls(config=config, base=source, paths=paths)

    def find_base(self) -> Source:
        """The base as it lies now.

        Raises:
          UserError: it is gone, or another one lies there.
        """
        told = []
        for path in self.paths:
            try:
                return Source.find(path, self.base.stage, self.base.checkpoint)
            except (UserError, OSError) as error:
                told.append(str(error))
        raise UserError(
            f"the base of the LoRA, {self.base.checkpoint} of stage {self.base.stage!r}, is not found: {listed(told)}; "
            "bring it back, or load the cascade that has it and give this run as a LoRA"
        )


def is_adapted(checkpoint: AnyPath) -> bool:
    """Tells if a checkpoint holds LoRA factors, not a network's parameters."""
    return (checkpoint / RECORD).is_file()


def load_checkpoint(path: AnyPath, text_encoder: str | None = None, ema: bool = True) -> TrainedStage:
    """The stage of a checkpoint; factors of LoRA are merged into their base.

    Args:
      path: the checkpoint.
      text_encoder: see `StageRecord.read`.
      ema: averaged parameters or factors (True), or those that were being trained.

    Raises:
      UserError: it is damaged, or its base is not found.
    """
    stage = TrainedStage.of_checkpoint(path, text_encoder, ema)
    if not is_adapted(path):
        return stage
    record = LoraRecord.read(path)
    base = record.find_base().load().weights.host
    lora.check_factors(stage.weights.host, abstract_network(stage.stage), str(path))
    host = lora.merged(base, stage.weights.host, record.config.scale)
    return dataclasses.replace(stage, weights=Weights(host, path))


def load_stage(model_dir: StrPath, text_encoder: str | None = None, step: folders.Step | None = None) -> TrainedStage:
    """The stage of a run directory; of LoRA merged.

    Args:
      model_dir: run directory.
      text_encoder: see `StageRecord.read`.
      step: which checkpoint: a number, or "best"; None is the newest.

    Raises:
      UserError: there is none, it is damaged, or its base is not found.
    """
    if step is not None:
        return load_checkpoint(folders.existing(model_dir, step), text_encoder)
    return checkpoints.read_newest(model_dir, lambda path: load_checkpoint(path, text_encoder))


def abstract_network(stage: Stage) -> PyTree:
    """Boxed shapes of a stage's parameters."""
    return jax.eval_shape(stage.init, jax.random.key(0))
