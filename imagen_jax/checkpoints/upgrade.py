"""Gives the checkpoints of older versions their record (`trained_stage`), once.

Those checkpoints hold gin text alone. It is read as data: its bindings fill the fields of registered classes, and
nothing of it is imported or executed.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax import gin_config
from imagen_jax.checkpoints import checkpoints, plain_data, proof
from imagen_jax.checkpoints.trained_stage import RECORD, VOCABULARY, StageRecord
from imagen_jax.errors import UserError
from imagen_jax.files import read_json
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.store.format import HEADER, fingerprint_differences
from imagen_jax.text.tokenizer import BYTES

# Fields that have another name since.
RENAMED = {("SamplingConfig", "grid"): "times"}


def upgrade_run(run_dir: str | os.PathLike[str], vocabulary: str | None = None) -> list[Path]:
    """Writes the record of every checkpoint under a cascade or run directory that has none.

    Args:
      run_dir: cascade directory, or run directory of one stage.
      vocabulary: the vocabulary of the training; None: where its config says, from the current directory.

    Returns:
      The checkpoints that were upgraded.

    Raises:
      UserError: there is no checkpoint, one is damaged or cannot be read as data, or it cannot be shown that the
        vocabulary is that of the training. Checkpoints before it stay upgraded, it and those after it as they were.
    """
    root = Path(run_dir)
    runs = [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []
    found = [checkpoints.checkpoint_dir(run, step) for run in runs for step in checkpoints.saved_steps(run)]
    if not found:
        raise UserError(f"no checkpoint under {root} or the folders in it; check the path")
    return [path for path in found if _upgrade(path, vocabulary)]


def _upgrade(path: Path, vocabulary: str | None) -> bool:
    try:
        known = json.loads((path / "digests.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} has no readable digests.json ({error}); restore it from a copy") from error
    if RECORD in known:
        return False
    # What an upgrade that was killed has left.
    (path / RECORD).unlink(missing_ok=True)
    shutil.rmtree(path / VOCABULARY, ignore_errors=True)
    proof.verify(path)
    for name, content in record_of(path, vocabulary).files(path).items():
        checkpoints.write_companion(path, name, content)
    proof.write_digests(path)
    return True


def record_of(checkpoint: Path, vocabulary: str | None = None) -> StageRecord:
    """The record of a checkpoint of an older version, from its config.gin read as data.

    Args:
      checkpoint: directory of the checkpoint.
      vocabulary: see `upgrade_run`.

    Raises:
      UserError: see `upgrade_run`.
    """
    operative_text = (checkpoint / "config.gin").read_text(encoding="utf-8")
    bindings = gin_config.read_as_data(operative_text)
    train = _fields(bindings, "TrainConfig", ())
    parts = {name: _value(bindings, train[name], ()) for name in ("stage", "sampling", "text") if name in train}
    if len(parts) < 3:
        raise UserError(f"{checkpoint / 'config.gin'} binds no TrainConfig with stage, sampling and text")
    data = _value(bindings, _fields(bindings, "DataConfig", ()).get("store_dir"), ())
    header = Path(data) / HEADER if isinstance(data, str) else None
    store = read_json(header)["fingerprint"] if header is not None and header.is_file() else None
    text = parts["text"]
    if vocabulary is not None:
        text = dataclasses.replace(text, vocabulary_path=vocabulary)
    elif store is None and text.vocabulary_path != BYTES:
        raise UserError(
            f"{checkpoint} names the vocabulary {text.vocabulary_path!r}, and no store at {data!r} shows that it is "
            f"that of the training; run this where the training ran, or add --vocabulary=PATH of its vocabulary"
        )
    encoder = TextEncoder(text)
    if store is not None:
        differences = fingerprint_differences(encoder.fingerprint(store["dtype"]), store)
        if differences:
            raise UserError(
                f"{checkpoint}: this is not the text encoder of the training ({'; '.join(differences)}); add "
                f"--vocabulary=PATH of its vocabulary"
            )
    return StageRecord.of_run(parts["stage"], parts["sampling"], encoder, operative_text)


def _value(bindings: Mapping[str, Any], value: Any, scopes: Sequence[str]) -> Any:
    """A bound value with its macros and references resolved."""
    if isinstance(value, list | tuple):
        return tuple(_value(bindings, one, scopes) for one in value)
    if not isinstance(value, gin_config.Reference):
        return value
    if value.macro:
        if value.name not in bindings:
            raise UserError(f"the config uses the macro %{value.name}, which it does not define")
        return _value(bindings, bindings[value.name], scopes)
    *inner, selector = value.name.split("/")
    name, scopes = selector.rsplit(".", 1)[-1], (*scopes, *inner)
    known = plain_data.fields_of(plain_data.class_named(name))
    fields = {field: _value(bindings, bound, scopes) for field, bound in _fields(bindings, name, scopes).items()}
    # gin prints Linen's own fields too, as None.
    return plain_data.build(name, {f: v for f, v in fields.items() if f in known or v is not None})


def _fields(bindings: Mapping[str, Any], name: str, scopes: Sequence[str]) -> dict[str, Any]:
    """Fields that are bound for a class: without a scope, then in each of the scopes."""
    found: dict[str, Any] = {}
    for scope in ("", *scopes):
        for key, value in bindings.items():
            where, _, selector = key.rpartition("/")
            parts = selector.split(".")
            if where == scope and len(parts) > 1 and parts[-2] == name:
                found[RENAMED.get((name, parts[-1]), parts[-1])] = value
    return found
