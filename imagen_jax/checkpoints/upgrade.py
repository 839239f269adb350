"""Gives the checkpoints of older versions their record (`trained_stage`), once.

Those checkpoints hold gin text alone. It is read as data: its bindings fill the fields of registered classes, and
nothing of it is imported or executed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax import gin_config
from imagen_jax.checkpoints import checkpoints, folders, plain_data, proof
from imagen_jax.checkpoints.trained_stage import KINDS, RECORD, VOCABULARY, StageRecord
from imagen_jax.errors import UserError
from imagen_jax.files import AnyPath, StrPath, as_path, check_content, read_json, remove_files, remove_tree
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.store.format import HEADER, fingerprint_differences
from imagen_jax.text.tokenizer import BYTES

# Fields that have another name since.
RENAMED = {("SamplingConfig", "grid"): "times"}


def upgrade_run(run_dir: StrPath, vocabulary: str | None = None) -> list[AnyPath]:
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
    root = as_path(run_dir)
    runs = [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []
    found = [folders.checkpoint_dir(run, step) for run in runs for step in folders.saved_steps(run)]
    if not found:
        raise UserError(f"no checkpoint under {root} or the folders in it; check the path")
    return [path for path in found if _upgrade(path, vocabulary)]


def _upgrade(path: AnyPath, vocabulary: str | None) -> bool:
    if RECORD in proof.read_digests(path):
        return False
    # What an upgrade that was killed has left.
    remove_files(path, [RECORD])
    remove_tree(path / VOCABULARY)
    proof.verify(path)
    for name, content in record_of(path, vocabulary).files(path).items():
        checkpoints.write_companion(path, name, content)
    proof.write_digests(path)
    return True


def record_of(checkpoint: AnyPath, vocabulary: str | None = None) -> StageRecord:
    """The record of a checkpoint of an older version, from its config.gin read as data.

    Args:
      checkpoint: directory of the checkpoint.
      vocabulary: see `upgrade_run`.

    Raises:
      UserError: see `upgrade_run`.
    """
    try:
        operative_text = (checkpoint / "config.gin").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{checkpoint / 'config.gin'} cannot be read ({error}); restore it from a copy") from error
    bindings = gin_config.read_as_data(operative_text)
    train = _fields(bindings, "TrainConfig", ())
    try:
        parts = {name: _value(bindings, train.get(name), ()) for name in KINDS}
        data = _value(bindings, _fields(bindings, "DataConfig", ()).get("store_dir"), ())
    except RecursionError as error:
        raise UserError(f"{checkpoint / 'config.gin'} refers to itself; restore it from a copy") from error
    if not all(isinstance(parts[name], kind) for name, kind in KINDS.items()):
        raise UserError(
            f"{checkpoint / 'config.gin'} binds no TrainConfig with a Stage, a SamplingConfig and a TextConfig"
        )
    header = Path(data) / HEADER if isinstance(data, str) else None
    store = _store_fingerprint(header) if header is not None and header.is_file() else None
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


def _store_fingerprint(header: AnyPath) -> dict[str, Any]:
    fix = "build the store again, or move it away and add --vocabulary=PATH of the training's vocabulary"
    try:
        content = read_json(header)
    except ValueError as error:
        raise UserError(f"{header} is damaged ({error}); {fix}") from error
    check_content(header, content, {"fingerprint": {"dtype": str}}, fix)
    return content["fingerprint"]


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
