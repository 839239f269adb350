"""A trained stage: what sampling, evaluation, export and serving load.

    MODEL_DIR/checkpoints/checkpoint_N/
      stage.json       record: network, diffusion, sampling and text settings, fingerprints; plain data
      vocabulary/      the record's own copy of the vocabulary

Reading a record runs nothing that came with it (see `plain_data`). Its paths are relative to the checkpoint, so a run
may be moved, renamed and read from any working directory. A pretrained text encoder is too large to be copied: the
record notes where it was, from the checkpoint and absolutely, and the digest of its parameters, which must be found.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax.checkpoints import checkpoints, folders, plain_data
from imagen_jax.errors import UserError
from imagen_jax.files import AnyPath, StrPath, as_path, in_package, installed_path, is_remote
from imagen_jax.sharding import rules
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.tokenizer import BYTES, vocabulary_files
from imagen_jax.text.weights.pretrained import Pretrained
from imagen_jax.typing import PyTree

RECORD = "stage.json"
VOCABULARY = "vocabulary"
SCHEMA = 1
# The settings that a record holds, by their names in it.
KINDS: dict[str, type] = {"stage": Stage, "sampling": SamplingConfig, "text": TextConfig}
UPGRADE = "imagen_jax upgrade_run --run_dir"


class Weights:
    """Parameters of a stage on the host, and a copy on the devices for as long as it is wanted.

    Args:
      host: arrays on the host; those of a run that trains are on its devices, and are not copied there.
      path: checkpoint that they are from, or the run directory of a run that trains.
    """

    def __init__(self, host: PyTree, path: AnyPath):
        self.host, self._path = host, path
        self._placed: tuple[Mesh | None, PyTree] | None = None

    def on_devices(self, stage: Stage, mesh: Mesh | None) -> PyTree:
        """The parameters where the stage runs; kept there until `release`.

        Raises:
          UserError: they are not those of the stage's network.
        """
        if self._placed is None or self._placed[0] != mesh:
            # Here, not on loading: a large network takes seconds to trace, and drawing traces it in any case.
            abstract = jax.eval_shape(stage.init, jax.random.key(0))
            checkpoints.check_same({"params": rules.unbox(abstract)}, {"params": self.host}, self._path)
            where = jax.local_devices()[0] if mesh is None else rules.param_shardings(abstract, mesh)
            self._placed = (mesh, jax.device_put(self.host, where))
        return self._placed[1]

    def shardings(self, stage: Stage, mesh: Mesh) -> PyTree:
        """Shardings of the parameters on a mesh."""
        return rules.param_shardings(jax.eval_shape(stage.init, jax.random.key(0)), mesh)

    def release(self) -> None:
        """Gives the devices' memory back."""
        self._placed = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRecord:
    """Settings of a trained stage, as stage.json holds them.

    Args:
      stage: network and diffusion.
      sampling: how it is sampled unless another way is asked for.
      text: the text encoder it was trained with; of a record that was read, the paths are those found here.
      text_fingerprint: `TextEncoder.fingerprint` of that encoder, without the dtype of a store.
      config_hash: first digits of the digest of the operative config.
    """

    stage: Stage
    sampling: SamplingConfig
    text: TextConfig
    text_fingerprint: Mapping[str, Any]
    config_hash: str

    @classmethod
    def of_run(cls, stage: Stage, sampling: SamplingConfig, encoder: TextEncoder, operative_text: str) -> "StageRecord":
        """The record of a run that trains `stage` on the embeddings of `encoder`."""
        return cls(
            stage=stage,
            sampling=sampling,
            text=encoder.config,
            text_fingerprint=without_dtype(encoder.fingerprint()),
            config_hash=hashlib.sha256(operative_text.encode()).hexdigest()[:12],
        )

    def files(self, checkpoint: AnyPath) -> dict[str, bytes]:
        """Files of the record by their names inside `checkpoint`: stage.json and the vocabulary.

        Args:
          checkpoint: directory that they will lie in; paths are noted from there.

        Raises:
          UserError: a setting's class is not registered, or the vocabulary is gone.
        """
        text, copied = self.text, {}
        encoder_paths: list[str] = []
        if text.vocabulary_path != BYTES:
            sources = vocabulary_files(text.vocabulary_path)
            copied = {f"{VOCABULARY}/{Path(source).name}": Path(source).read_bytes() for source in sources}
            one_file = as_path(installed_path(text.vocabulary_path)).is_file()
            text = dataclasses.replace(text, vocabulary_path=next(iter(copied)) if one_file else VOCABULARY)
        if isinstance(text.encoder, Pretrained):
            path = text.encoder.path
            if not is_remote(path) and not in_package(path):
                beside = [] if is_remote(checkpoint) else [os.path.relpath(path, checkpoint)]
                encoder_paths = [*beside, os.path.abspath(path)]
            text = dataclasses.replace(text, encoder=dataclasses.replace(text.encoder, sizes=text.sizes()))
        data = {
            "schema": SCHEMA,
            "stage": plain_data.to_data(self.stage),
            "sampling": plain_data.to_data(self.sampling),
            "text": plain_data.to_data(text),
            "text_fingerprint": dict(self.text_fingerprint),
            "text_encoder_paths": encoder_paths,
            "config_hash": self.config_hash,
        }
        return {RECORD: (json.dumps(data, indent=1, allow_nan=False) + "\n").encode(), **copied}

    @classmethod
    def read(cls, checkpoint: AnyPath, text_encoder: str | None = None) -> "StageRecord":
        """The record of a checkpoint; paths of the text encoder are those found on this machine.

        Args:
          checkpoint: directory of the checkpoint.
          text_encoder: where the pretrained text encoder is; None: where the record says.

        Raises:
          UserError: there is no record, it is damaged or of a newer version, or it leads out of its directory.
        """
        path = checkpoint / RECORD
        if not path.is_file():
            run = checkpoint.parent.parent
            raise UserError(
                f"{checkpoint} has no {RECORD}: an older version of imagen_jax wrote it; run `{UPGRADE}={run}` once"
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            schema = data["schema"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); restore it from a copy") from error
        if schema != SCHEMA:
            raise UserError(f"{path} has schema {schema!r}, this program reads {SCHEMA}; install a newer imagen_jax")
        parts = {name: plain_data.from_data(data.get(name)) for name in KINDS}
        for name, kind in KINDS.items():
            if not isinstance(parts[name], kind):
                raise UserError(f"{path} has no {kind.__name__} under {name!r}; it is damaged")
        if not isinstance(data.get("text_fingerprint"), dict) or not isinstance(data.get("config_hash"), str):
            raise UserError(f"{path} has no text_fingerprint or config_hash; it is damaged")
        parts["text"] = _placed(parts["text"], data.get("text_encoder_paths"), checkpoint, text_encoder)
        return cls(**parts, text_fingerprint=data["text_fingerprint"], config_hash=data["config_hash"])


def _placed(text: TextConfig, noted: Any, checkpoint: AnyPath, text_encoder: str | None) -> TextConfig:
    """The text settings with paths of this machine."""
    if text.vocabulary_path != BYTES:
        parts = Path(text.vocabulary_path).parts
        if parts[:1] != (VOCABULARY,) or ".." in parts:
            raise UserError(
                f"{checkpoint / RECORD} names the vocabulary {text.vocabulary_path!r}; expected a path under "
                f"{VOCABULARY}/ beside it"
            )
        text = dataclasses.replace(text, vocabulary_path=os.fspath(checkpoint / text.vocabulary_path))
    if not isinstance(text.encoder, Pretrained):
        return text
    path = text.encoder.path
    if text_encoder is not None:
        path = text_encoder
    elif isinstance(noted, list) and noted and all(isinstance(one, str) for one in noted):
        tried = [one if is_remote(checkpoint) else os.path.normpath(checkpoint.absolute() / one) for one in noted]
        # What is missing is told when the encoder is needed: a run may be looked at without it.
        path = next((one for one in tried if os.path.exists(one)), tried[0])
    return dataclasses.replace(text, encoder=dataclasses.replace(text.encoder, path=path))


def without_dtype(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """A fingerprint without the dtype that a store keeps embeddings in."""
    return {name: value for name, value in fingerprint.items() if name != "dtype"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedStage:
    """A stage with its averaged parameters.

    Args:
      stage, sampling, text, text_fingerprint, config_hash: see `StageRecord`.
      weights: averaged parameters.
      checkpoint: `checkpoints.fingerprint` of what the weights are from.
    """

    stage: Stage
    sampling: SamplingConfig
    text: TextConfig
    text_fingerprint: Mapping[str, Any]
    config_hash: str
    weights: Weights
    checkpoint: str

    @classmethod
    def of_checkpoint(cls, path: AnyPath, text_encoder: str | None = None, ema: bool = True) -> "TrainedStage":
        """The stage of one checkpoint's directory.

        Args:
          path: the checkpoint.
          text_encoder: see `StageRecord.read`.
          ema: its averaged parameters (True), or those that were being trained.

        Raises:
          UserError: it is damaged, or holds no such parameters.
        """
        model_dir = path.parent.parent
        record = StageRecord.read(path, text_encoder)
        step = folders.step_of(path)
        host = jax.tree.map(np.asarray, checkpoints.load_params(model_dir, step, ema))
        fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        return cls(**fields, weights=Weights(host, path), checkpoint=checkpoints.fingerprint(model_dir, step))


def read_record(model_dir: StrPath, text_encoder: str | None = None) -> StageRecord:
    """The record of a run's newest checkpoint; see `StageRecord.read`."""
    return checkpoints.read_newest(model_dir, lambda path: StageRecord.read(path, text_encoder))
