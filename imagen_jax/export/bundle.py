"""The bundle: a trained cascade as one directory, of which all but the arrays is JSON and text.

    DIR/
      bundle.json        version of the format, the stages in their order, where they are from
      stages/0-base/     stage.json and vocabulary/ as in a checkpoint; params-00001-of-0000N.safetensors
      README.md, …       model card, data cards, versions of the training: copied, not read
      digests.json       SHA-256 of every other file; the last file written

Reading a bundle runs nothing that came with it (see `checkpoints.plain_data`), and imports neither TensorFlow nor
seqio nor the trainer. Every byte is compared with its digest while it is read.
"""

import dataclasses
import functools
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checkpoints.trained_stage import RECORD, StageRecord, TrainedStage, Weights
from imagen_jax.errors import UserError, listed
from imagen_jax.export import arrays, weights
from imagen_jax.files import (
    FILE_NAME,
    absolute,
    as_path,
    check_content,
    files_under,
    is_remote,
    local_folder,
    make_dirs,
    read_json,
    remove_tree,
    send_files,
    sha256_of_files,
    size_of,
    write_bytes,
    write_json,
)
from imagen_jax.models.denoiser import Conditioning, uncropped
from imagen_jax.stage.spec import Stage
from imagen_jax.typing import Array, PyTree
from imagen_jax.versions import code_version

FORMAT_VERSION = 2
# The first has no weights in fewer bits; such bundles are written as it still.
_FIRST = 1
HEADER, DIGESTS, STAGES, CARD = "bundle.json", "digests.json", "stages", "README.md"
PARTIAL, OLD = ".partial", ".old"
# Arrays of one file: several are read and hashed at once.
MAX_FILE_BYTES = 512 << 20
_FORM = {"stages": [{"folder": FILE_NAME, "files": [FILE_NAME], "checkpoint": str}], "text_fingerprint": dict}


def is_bundle(path: str) -> bool:
    """Tells if a folder is a bundle."""
    return size_of(f"{path.rstrip('/')}/{HEADER}") is not None


def export_bundle(
    stages: Sequence[TrainedStage],
    directory: str,
    *,
    companions: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
    max_file_bytes: int = MAX_FILE_BYTES,
    form: str = weights.AS_THEY_ARE,
) -> dict[str, float]:
    """Writes a bundle, loads it and compares it with the stages; only then it has its name.

    Args:
      stages: of a cascade, in their order.
      directory: the bundle; of this machine or in a bucket.
      companions: further files by their names in the bundle: README.md, data cards, versions.
      overwrite: replace a bundle that is there.
      max_file_bytes: arrays of one file; larger stages have several.
      form: in which kernels are kept, one of `weights.FORMS`.

    Returns:
      Change of each stage's output by its name: root mean square of the difference over that of the output, in one
      call; 0 where the parameters are kept as they are.

    Raises:
      UserError: something is in the way, a stage cannot be written, or what was written is not what the stages are.
    """
    if form not in weights.FORMS:
        raise UserError(f"weights ({form!r}) must be one of {', '.join(weights.FORMS)}")
    changes = dict.fromkeys([one.stage.name for one in stages], 0.0)
    if form != weights.AS_THEY_ARE:
        before, stages = stages, [_in_form(one, directory, form) for one in stages]
        changes = {one.stage.name: _change(one, other) for one, other in zip(before, stages, strict=True)}
    final = absolute(directory).rstrip("/")
    there = bool(files_under(final)) if is_remote(final) else os.path.lexists(final)
    if there and not (overwrite and is_bundle(final)):
        hint = "give --overwrite to replace it" if is_bundle(final) else "it is no bundle: choose another folder"
        raise UserError(f"{directory} is there already; {hint}")
    if is_remote(final):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as here:
            _write(stages, here, final, companions or {}, max_file_bytes, form)
            _send(here, final)
        _compare(stages, load_bundle(final), drawn=False)
        return changes
    partial = final + PARTIAL
    remove_tree(partial)
    try:
        make_dirs(partial)
        _write(stages, partial, final, companions or {}, max_file_bytes, form)
        if there:
            remove_tree(final + OLD)
            os.rename(final, final + OLD)
        os.rename(partial, final)
    except BaseException:
        remove_tree(partial)
        raise
    remove_tree(final + OLD)
    return changes


def _in_form(one: TrainedStage, path: str, form: str) -> TrainedStage:
    """A stage with the parameters that a bundle of a form gives back."""
    leaves = arrays.flat(jax.device_get(one.weights.host))
    kept = arrays.nested(weights.unpacked(path, weights.packed(leaves, form), form))
    return dataclasses.replace(one, weights=Weights(kept, as_path(path)))


def _change(one: TrainedStage, other: TrainedStage) -> float:
    wanted, got = (np.asarray(_call(one.stage, each.weights.host), np.float64) for each in (one, other))
    return math.sqrt(float(np.mean((got - wanted) ** 2)) / max(float(np.mean(wanted**2)), 1e-30))


def _write(
    stages: Sequence[TrainedStage],
    folder: str,
    final: str,
    companions: Mapping[str, bytes],
    max_file_bytes: int,
    form: str,
) -> None:
    """Writes all files into a folder of this machine, and compares them with the stages."""
    entries = []
    for number, one in enumerate(stages):
        name = f"{number}-{one.stage.name}"
        own = os.path.join(folder, STAGES, name)
        os.makedirs(own)
        settings = {field.name: getattr(one, field.name) for field in dataclasses.fields(StageRecord)}
        for file, content in StageRecord(**settings).files(as_path(f"{final}/{STAGES}/{name}")).items():
            make_dirs(os.path.dirname(os.path.join(own, file)))
            write_bytes(os.path.join(own, file), content, sync=True)
        leaves = arrays.flat(jax.device_get(one.weights.host))
        entries.append(
            {
                "folder": name,
                "files": arrays.write_arrays(own, weights.packed(leaves, form), max_file_bytes),
                "checkpoint": one.checkpoint,
                "num_parameters": sum(leaf.size for leaf in leaves.values()),
            }
        )
    for file, content in companions.items():
        make_dirs(os.path.dirname(os.path.join(folder, file)))
        write_bytes(os.path.join(folder, file), content)
    header = {
        "format_version": _FIRST if form == weights.AS_THEY_ARE else FORMAT_VERSION,
        "weights": form,
        "written_by": code_version(),
        "stages": entries,
        "text_fingerprint": dict(stages[0].text_fingerprint),
    }
    write_json(os.path.join(folder, HEADER), header, end="\n", sync=True)
    names = list(files_under(folder))
    sums = sha256_of_files([os.path.join(folder, name) for name in names])
    write_json(os.path.join(folder, DIGESTS), dict(zip(names, sums, strict=True)), end="\n", sync=True)
    _compare(stages, load_bundle(folder))


def _send(here: str, final: str) -> None:
    """Sends a bundle to a bucket: without its last file, digests.json, it is none that loads."""
    remove_tree(final)
    make_dirs(final)
    digests = as_path(here) / DIGESTS
    content = digests.read_bytes()
    digests.unlink()
    send_files(here, final)
    write_bytes(f"{final}/{DIGESTS}", content)


def load_bundle(path: str, text_encoder: str | None = None) -> list[TrainedStage]:
    """The stages of a bundle, every byte of it compared with its digest.

    Args:
      path: of this machine or in a bucket.
      text_encoder: where a pretrained text encoder is; None: where the bundle says.

    Raises:
      UserError: a file changed, is missing or too many, a newer version wrote it, or it leads out of its folder.
    """
    folder, found = _verified(path)
    header = _header(path, found[HEADER])
    form = header.get("weights", weights.AS_THEY_ARE)
    return [_stage(folder, entry, found, text_encoder, form) for entry in header["stages"]]


def read_records(path: str) -> list[tuple[StageRecord, str]]:
    """Settings of each stage and the checkpoint that it is from, without its arrays; nothing is compared with digests.

    Raises:
      UserError: the header or a record is damaged, or a newer version wrote it.
    """
    content = np.frombuffer((as_path(path) / HEADER).read_bytes(), np.uint8)
    entries = _header(path, content)["stages"]
    for entry in entries:
        if not _inside(name := entry["folder"]):
            raise UserError(f"{path}/{HEADER} names {ascii(name)[:80]}, which is no folder of the bundle; {arrays.FIX}")
    places = [as_path(path) / STAGES / entry["folder"] for entry in entries]
    return [(StageRecord.read(place), entry["checkpoint"]) for place, entry in zip(places, entries, strict=True)]


def _header(path: str, content: np.ndarray) -> dict[str, Any]:
    """The header of a bundle, of a version that this program reads."""
    header = _json(f"{path}/{HEADER}", content)
    version = header.get("format_version") if isinstance(header, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise UserError(
            f"{path} is a bundle of format {version}, this program reads {FORMAT_VERSION}; install a newer imagen_jax"
        )
    if type(version) is not int or version < _FIRST:
        raise UserError(f"{path}/{HEADER} has format_version {version!r}, expected {FORMAT_VERSION}; {arrays.FIX}")
    if header.get("weights", weights.AS_THEY_ARE) not in weights.FORMS:
        raise UserError(f"{path}/{HEADER} has weights {ascii(header['weights'])[:80]}; {arrays.FIX}")
    check_content(f"{path}/{HEADER}", header, _FORM, arrays.FIX)
    if not header["stages"]:
        raise UserError(f"{path}/{HEADER} names no stage; {arrays.FIX}")
    return header


def _stage(
    folder: str, entry: Mapping[str, Any], found: Mapping[str, np.ndarray], encoder: str | None, form: str
) -> TrainedStage:
    own = f"{STAGES}/{entry['folder']}"
    leaves: dict[str, np.ndarray] = {}
    for name in [f"{own}/{file}" for file in entry["files"]]:
        if name not in found:
            raise UserError(f"{folder}/{HEADER} names {name}, which is not there; {arrays.FIX}")
        part = arrays.parse_arrays(f"{folder}/{name}", found[name])
        if twice := sorted(part.keys() & leaves.keys()):
            raise UserError(f"{folder}/{name} holds {twice[0]}, as another file does; {arrays.FIX}")
        leaves.update(part)
    place = as_path(folder) / own
    if f"{own}/{RECORD}" not in found:
        raise UserError(f"{place} has no {RECORD}; {arrays.FIX}")
    record = StageRecord.read(place, encoder)
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    params = arrays.nested(weights.unpacked(folder, leaves, form))
    return TrainedStage(**fields, weights=Weights(params, place), checkpoint=entry["checkpoint"])


def _verified(path: str) -> tuple[str, dict[str, np.ndarray]]:
    """Folder of this machine that holds a bundle, and the bytes of its files by name, compared with their digests."""
    place = f"{path.rstrip('/')}/{DIGESTS}"
    try:
        expected = read_json(place)
    except FileNotFoundError as error:
        raise UserError(f"{path} is no whole bundle: it has no {DIGESTS}; {arrays.FIX}") from error
    except ValueError as error:
        raise UserError(f"{place} is damaged ({error}); {arrays.FIX}") from error
    check_content(place, expected, {HEADER: str, ...: str}, arrays.FIX)
    for name in expected:
        if not _inside(name):
            raise UserError(f"{place} names {ascii(name)[:80]}, which is no file of the bundle; {arrays.FIX}")
    there = files_under(path)
    wrong = [f"{name} (missing)" for name in expected if name not in there]
    # Others may lie beside the stages, as the Hub's do; among them they could be taken for a vocabulary.
    wrong += [
        f"{name} (not written by export)" for name in there if name.startswith(f"{STAGES}/") and name not in expected
    ]
    if HEADER not in expected:
        wrong.append(f"{HEADER} (without a digest)")
    found: dict[str, np.ndarray] = {}
    if not wrong:
        folder = local_folder(path, expected)
        read = arrays.read_hashed([os.path.join(folder, name) for name in expected])
        for name, (content, digest) in zip(expected, read, strict=True):
            found[name] = content
            wrong += [f"{name} (changed)"] * (digest != expected[name])
    if wrong:
        raise UserError(f"the bundle {path} is damaged: {listed(wrong)}; {arrays.FIX}")
    return folder, found


def _inside(name: str) -> bool:
    """Tells if a name is of something in the folder that it is read from."""
    return "\0" not in name and "\\" not in name and not {"", ".", ".."} & {*name.split("/")}


def _json(path: str, content: np.ndarray) -> Any:
    try:
        return json.loads(content.tobytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {arrays.FIX}") from error


def _compare(stages: Sequence[TrainedStage], loaded: Sequence[TrainedStage], drawn: bool = True) -> None:
    """Raises UserError unless loaded stages are those that were written: settings, every bit, one call of each network.

    Args:
      stages: those that were to be written.
      loaded: those that were read again.
      drawn: also call the networks.
    """
    for one, other in zip(stages, loaded, strict=True):
        same = ("stage", "sampling", "config_hash", "checkpoint")
        wrong = [name for name in same if getattr(one, name) != getattr(other, name)]
        wrong += ["text_fingerprint"] * (dict(one.text_fingerprint) != dict(other.text_fingerprint))
        wanted, got = arrays.flat(one.weights.host), arrays.flat(other.weights.host)
        wrong += sorted(wanted.keys() ^ got.keys())
        wrong += [name for name, leaf in wanted.items() if name in got and not _same_bits(leaf, got[name])]
        if not wrong and drawn:
            calls = [np.asarray(_call(one.stage, params)) for params in (one.weights.host, other.weights.host)]
            wrong += ["one call of its network"] * (not _same_bits(*calls))
        if wrong:
            raise UserError(f"stage {one.stage.name!r} was not written as it is: {listed(wrong)}; export it again")


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and bool(
        np.array_equal(one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8))
    )


@functools.partial(jax.jit, static_argnums=0)
def _call(stage: Stage, params: PyTree) -> Array:
    """The network's output for one fixed noise and text; its own smallest image, as sizes change nothing of it."""
    side = stage.image_size
    keys = jax.random.split(jax.random.key(0), 3)
    z_t = jax.random.normal(keys[0], (1, side, side, 3))
    low_res = None if stage.low_res_size is None else jax.random.normal(keys[1], z_t.shape)
    cond = Conditioning(
        text=jax.random.normal(keys[2], (1, stage.max_text_length, stage.text_embed_dim)),
        text_mask=jnp.ones((1, stage.max_text_length), bool),
        low_res=low_res,
        aug_level=None if stage.low_res_size is None else jnp.full((1,), 0.1),
        self_cond=z_t if stage.self_cond_rate > 0 else None,
        framing=uncropped(1, side, side) if stage.framing else None,
    )
    return stage.model.apply({"params": params}, z_t, jnp.zeros((1,)), cond)
