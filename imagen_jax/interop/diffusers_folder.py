"""An IF stage out, as a folder from which diffusers' IFPipeline or IFSuperResolutionPipeline loads."""

import os

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from imagen_jax.checks import check_count, check_path
from imagen_jax.errors import UserError
from imagen_jax.files import absolute, is_remote, make_dirs, remove_tree, write_json
from imagen_jax.interop.if_stage import SCHEDULER_FILE, WEIGHTS, IFAdapter, IFStage, load_if_stage

PARTIAL = ".partial"
# Arrays of one file, as diffusers writes them; each file is held in memory once.
MAX_FILE_BYTES = 2 << 30
_ABSENT = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "watermarker")


def save_if_stage(stage: IFStage, folder: str, *, max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Writes a stage in diffusers' form, loads it again and compares it bit by bit; only then it has its name.

    The text encoder, safety checker and watermark are no part of a stage: diffusers' pipeline takes embeddings.

    Args:
      stage: as `load_if_stage` gives it, its parameters float32.
      folder: does not exist yet; of this machine.
      max_file_bytes: arrays of one file; a larger network has several and an index.

    Raises:
      UserError: something is in the way, or what was written is not what the stage is.
    """
    check_path("folder", folder)
    check_count("max_file_bytes", max_file_bytes)
    final = absolute(folder).rstrip("/")
    if is_remote(final):
        raise UserError(f"folder ({folder}) must be of this machine, got an address; write it here, then copy it")
    if os.path.lexists(final):
        raise UserError(f"{folder} is there already; choose a folder that does not exist")
    partial = final + PARTIAL
    remove_tree(partial)
    try:
        _write(stage, partial, max_file_bytes)
        _compare(stage, partial)
        os.rename(partial, final)
    except BaseException:
        remove_tree(partial)
        raise


def _write(stage: IFStage, folder: str, max_file_bytes: int) -> None:
    for name, content in stage.settings.items():
        make_dirs(os.path.join(folder, name))
        write_json(os.path.join(folder, name, "config.json" if name == "unet" else SCHEDULER_FILE), dict(content), 2)
    _write_arrays(stage, os.path.join(folder, "unet"), max_file_bytes)
    parts = {name: ["diffusers", content["_class_name"]] for name, content in stage.settings.items()}
    kind = "IFPipeline" if stage.noising is None else "IFSuperResolutionPipeline"
    index = {"_class_name": kind, "requires_safety_checker": False}
    write_json(os.path.join(folder, "model_index.json"), index | parts | {name: [None, None] for name in _ABSENT}, 2)


def _write_arrays(stage: IFStage, unet: str, max_file_bytes: int) -> None:
    """Writes one file, or numbered ones and the index that diffusers asks for."""
    adapter, leaves = IFAdapter(), traverse_util.flatten_dict(stage.params)
    groups: list[list[tuple[str, ...]]] = [[]]
    size = total = 0
    for path, leaf in leaves.items():
        if groups[-1] and size + leaf.nbytes > max_file_bytes:
            groups.append([])
            size = 0
        groups[-1].append(path)
        size, total = size + leaf.nbytes, total + leaf.nbytes
    stem = WEIGHTS.removesuffix(".safetensors")
    places: dict[str, str] = {}
    for number, group in enumerate(groups):
        file = WEIGHTS if len(groups) == 1 else f"{stem}-{number + 1:05}-of-{len(groups):05}.safetensors"
        arrays = {
            adapter.foreign_name(path): np.ascontiguousarray(adapter.from_native(path, np.asarray(leaves[path])))
            for path in group
        }
        save_file(arrays, os.path.join(unet, file), metadata={"format": "pt"})
        places |= dict.fromkeys(arrays, file)
    if len(groups) > 1:
        write_json(
            os.path.join(unet, f"{WEIGHTS}.index.json"), {"metadata": {"total_size": total}, "weight_map": places}, 2
        )


def _compare(stage: IFStage, folder: str) -> None:
    """Raises UserError unless the folder loads as the stage."""
    again = load_if_stage(folder)
    wrong = [
        name for name in ("config", "scheduler", "noising", "settings") if getattr(stage, name) != getattr(again, name)
    ]
    wanted, got = traverse_util.flatten_dict(stage.params), traverse_util.flatten_dict(again.params)
    wrong += [".".join(path) for path, leaf in wanted.items() if not np.array_equal(*jax.device_get((leaf, got[path])))]
    if wrong:
        raise UserError(
            f"{folder} reads back otherwise than it was written ({', '.join(wrong[:10])}); expected the same bits: "
            "is the disk full or damaged? The folder was removed"
        )
