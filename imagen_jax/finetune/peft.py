"""LoRA as PEFT's files: read and written bit for bit.

    DIR/
      adapter_model.safetensors    base_model.model.<path>.lora_A.weight and .lora_B.weight
      adapter_config.json          rank, alpha, modules; the last file written

The orientation is torch's (https://huggingface.co/docs/peft/developer_guides/checkpoint): A is [rank, inputs] and B
[outputs, rank]; of a convolution A is [rank, inputs, height, width] and B [outputs, rank, 1, 1]. <path> is that of the
parameter without its last ".kernel"; layers stacked for a scan stand one by one, with their number at the end. What
PEFT has no place for (base checkpoint, axes of the kernels) is in the header of the .safetensors file.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

from imagen_jax.checkpoints.trees import named_leaves
from imagen_jax.errors import UserError
from imagen_jax.export.arrays import nested, parse_arrays, parse_metadata
from imagen_jax.files import (
    as_path,
    check_content,
    files_under,
    make_dirs,
    read_json,
    remove_files,
    size_of,
    write_bytes,
    write_json,
)
from imagen_jax.finetune.lora import A, B, Layout, LoraConfig
from imagen_jax.finetune.loras import Lora

ARRAYS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX, _KERNEL, _OURS = "base_model.model.", ".kernel", "imagen_jax"
_FIX = "export the LoRA again"
_FORM = {"stage": str, "base": str, "word": str, "lora": dict, "kernels": dict}


def is_peft(path: str) -> bool:
    """Tells if a folder holds a LoRA in PEFT's form."""
    return size_of(f"{path.rstrip('/')}/{CONFIG}") is not None


def to_torch(layout: Layout, factor: str, array: np.ndarray) -> np.ndarray:
    """One layer's factor in torch's orientation.

    Args:
      layout: of its kernel, without the stack.
      factor: A or B.
      array: as it is here.
    """
    inputs = layout.parts[1]
    if factor == B:
        flat = np.moveaxis(array.reshape(array.shape[0], -1), 0, 1)
        return flat[:, :, None, None] if len(inputs) == 3 else flat
    if len(inputs) == 3:
        return array.transpose(3, 2, 0, 1)
    return np.moveaxis(array.reshape(-1, array.shape[-1]), 1, 0)


def from_torch(layout: Layout, factor: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch`."""
    inputs, outputs = layout.parts[1:]
    if factor == B:
        size, rank = array.shape[0], array.shape[1]
        return np.moveaxis(array.reshape(size, rank), 1, 0).reshape(rank, *outputs)
    if len(inputs) == 3:
        return array.transpose(2, 3, 1, 0)
    return np.moveaxis(array, 0, 1).reshape(*inputs, array.shape[0])


def _layers(name: str, layout: Layout) -> list[tuple[str, tuple[int, ...], Layout]]:
    """PEFT's module, place in the stack, and layout of each layer of a kernel."""
    module, own = name.removesuffix(_KERNEL), dataclasses.replace(layout, shape=layout.shape[layout.num_stacked :])
    own = dataclasses.replace(own, names=layout.names[layout.num_stacked :], num_stacked=0)
    places = list(np.ndindex(*layout.parts[0]))
    return [(".".join([module, *map(str, place)]), place, own) for place in places]


def write_peft(one: Lora, directory: str, overwrite: bool = False) -> None:
    """Writes a LoRA in PEFT's form, reads it again and compares.

    Args:
      one: the LoRA.
      directory: a new folder, here or in a bucket.
      overwrite: replace a LoRA that is there.

    Raises:
      UserError: something else is in the way, or what was written is not the LoRA.
    """
    if files_under(directory) and not (overwrite and is_peft(directory)):
        raise UserError(f"{directory} is there already; choose another folder, or give --overwrite to replace a LoRA")
    leaves, arrays, modules = named_leaves(one.factors), dict[str, np.ndarray](), list[str]()
    for name, layout in one.layouts.items():
        for module, place, own in _layers(name, layout):
            modules.append(module)
            for factor in (A, B):
                turned = to_torch(own, factor, np.asarray(leaves[f"{name}.{factor}"])[place])
                arrays[f"{_PREFIX}{module}.{factor}.weight"] = np.ascontiguousarray(turned)
    ours = {
        "stage": one.stage,
        "base": one.base,
        "word": one.word,
        "lora": dataclasses.asdict(one.config),
        "kernels": {
            name: [layout.shape, layout.num_stacked, layout.num_inputs] for name, layout in one.layouts.items()
        },
    }
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": one.config.rank,
        "lora_alpha": one.config.scale * one.config.rank,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
    }
    make_dirs(directory)
    # The config is the first to go and the last to come: without it this is no LoRA.
    remove_files(directory, [CONFIG])
    write_bytes(as_path(directory) / ARRAYS, save(arrays, {"format": "pt", _OURS: json.dumps(ours)}), sync=True)
    write_json(as_path(directory) / CONFIG, config, end="\n", sync=True)
    again = read_peft(directory)
    same = jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), one.factors, again.factors)
    if not all(jax.tree.leaves(same)) or dataclasses.replace(again, path="", factors=()) != dataclasses.replace(
        one, path="", factors=()
    ):
        raise UserError(f"{directory} is not what was to be written; {_FIX}")


def read_peft(directory: str) -> Lora:
    """A LoRA that `write_peft` wrote.

    Raises:
      UserError: the files are damaged, or another program wrote them, so that its base is not known.
    """
    path = as_path(directory) / ARRAYS
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except FileNotFoundError as error:
        raise UserError(f"{directory} has {CONFIG}, but no {ARRAYS}; {_FIX}") from error
    arrays = parse_arrays(str(path), content)
    told = parse_metadata(content).get(_OURS)
    if told is None:
        raise UserError(f"{path} was not written by imagen_jax, so the base of this LoRA is not known; {_FIX}")
    try:
        return _built(directory, arrays, json.loads(told), read_json(as_path(directory) / CONFIG))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{directory} is damaged ({type(error).__name__}: {error}); {_FIX}") from error


def _built(directory: str, arrays: dict[str, np.ndarray], ours: dict[str, Any], config: dict[str, Any]) -> Lora:
    check_content(f"{directory}/{ARRAYS}", ours, _FORM, _FIX)
    settings = LoraConfig(**{**ours["lora"], "targets": tuple(ours["lora"]["targets"])})
    if (config["r"], config["lora_alpha"]) != (settings.rank, settings.scale * settings.rank):
        raise UserError(f"{directory}/{CONFIG} has another rank or alpha than {ARRAYS}; {_FIX}")
    wild = [name for name, array in arrays.items() if array.dtype.kind == "i" or not np.isfinite(array).all()]
    if wild:
        raise UserError(f"{directory}/{ARRAYS}: {wild[0]} holds other than finite numbers with fractions; {_FIX}")
    factors, layouts, used = dict[str, np.ndarray](), dict[str, Layout](), set[str]()
    for name, (shape, num_stacked, num_inputs) in ours["kernels"].items():
        layout = layouts[name] = Layout(tuple(shape), (None,) * len(shape), num_stacked, num_inputs)
        for factor in (A, B):
            keys = [(f"{_PREFIX}{module}.{factor}.weight", own) for module, _, own in _layers(name, layout)]
            used.update(key for key, _ in keys)
            parts = [from_torch(own, factor, arrays[key]) for key, own in keys]
            stacked = np.stack(parts) if num_stacked else parts[0]
            factors[f"{name}.{factor}"] = stacked.reshape(layout.factors(settings.rank)[factor][0])
    if extra := sorted(arrays.keys() - used):
        raise UserError(f"{directory}/{ARRAYS} holds {extra[0]}, which is of no kernel that it names; {_FIX}")
    return Lora(
        path=directory,
        config=settings,
        stage=ours["stage"],
        base=ours["base"],
        factors=nested(factors),
        word=ours["word"],
        layouts=layouts,
    )
