"""A cascade as StableHLO programs that run where jax is and nothing else: text encoder, denoise steps, whole sampler.

    DIR/
      programs.json                    what each program takes; the day from which it may not load
      sampler.stablehlo                ids, mask, seeds, rows → uint8 images of the last stage
      text_encoder.stablehlo           ids, mask → embeddings
      step-0-base.stablehlo, …         one guided, thresholded estimate of a stage
      text/, 0-base/, …                parameters as .safetensors, which the programs take as arguments
      run.py                           draws images; needs jax and NumPy

jax.export keeps a program loadable by versions of jax up to six months newer than the one that wrote it
(https://docs.jax.dev/en/latest/export/export.html, "Compatibility guarantees").
"""

import datetime
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from imagen_jax.errors import UserError
from imagen_jax.export import arrays
from imagen_jax.files import absolute, is_remote, make_dirs, remove_tree, write_bytes, write_json
from imagen_jax.models.denoiser import Conditioning, drop_text, uncropped
from imagen_jax.sampling.drawing import CascadePrograms, RowInputs, StageInputs, draw_all, prepare
from imagen_jax.sampling.request import Request
from imagen_jax.stage.guided import GuidedDenoiser
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.typing import Array
from imagen_jax.versions import code_version

if TYPE_CHECKING:
    from imagen_jax.sampling.cascade import Cascade

PLATFORMS = ("cpu", "tpu", "cuda")
LOADABLE_DAYS = 180
# Days that versions of jax were built on, as their wheels tell; jax itself does not say.
RELEASED = {"0.10.2": "2026-06-17", "0.12.0.1": "2026-10-20"}
HEADER, SUFFIX, PARTIAL = "programs.json", ".stablehlo", ".partial"
# Largest difference of an estimate in [-1, 1] between a program that was loaded and the one it was made of.
TOLERANCE = 1e-4
_PROMPTS = ["a red cube", ""]
Parts = dict[str, dict[str, np.ndarray]]
Program = tuple[Callable[..., Any], dict[str, Any]]

_RUNNER = '''"""Draws images by sampler.stablehlo: python run.py IDS.json OUT.npy [SEED]; needs jax and NumPy alone.

IDS.json holds a list of token ids a caption, made by the vocabulary that programs.json names; OUT.npy, uint8 images.
"""

import json
import pathlib
import sys

import jax
import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent
HEADER = json.loads((FOLDER / "programs.json").read_text())
DTYPES = {"F32": "float32", "F16": "float16", "I32": "int32", "BF16": jax.numpy.bfloat16}


def read(path):
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        yield name, np.frombuffer(content[start + begin : start + end], DTYPES[entry["dtype"]]).reshape(entry["shape"])


params = {}
for part, files in HEADER["params"].items():
    params[part] = dict(item for file in files for item in read(FOLDER / file))
captions = json.loads(pathlib.Path(sys.argv[1]).read_text())
ids = np.zeros((len(captions), HEADER["max_length"]), np.int32)
mask = np.zeros(ids.shape, bool)
for row, caption in enumerate(captions):
    ids[row, : len(caption)], mask[row, : len(caption)] = caption, True
seeds = np.full(len(captions), int(sys.argv[3]) if len(sys.argv) > 3 else 0, np.uint32)
sampler = jax.export.deserialize(bytearray((FOLDER / "sampler.stablehlo").read_bytes()))
np.save(sys.argv[2], sampler.call(params, ids, mask, seeds, np.arange(len(captions), dtype=np.int32)))
'''


def export_programs(cascade: "Cascade", directory: str, *, overwrite: bool = False) -> None:
    """Writes the programs of a cascade, loads them and compares them with it; only then they have their name.

    Args:
      cascade: from captions to images, its first stage a base stage.
      directory: where to; of this machine.
      overwrite: replace a folder of programs that is there.

    Raises:
      UserError: something is in the way, the cascade begins with super-resolution or knows learned words, or what was
        loaded again gives something else.
    """
    final = absolute(directory).rstrip("/")
    if is_remote(final):
        raise UserError(f"{directory} is in a bucket; write programs to a folder of this machine, then copy them")
    if type(cascade.encoder) is not TextEncoder:
        raise UserError("learned words are no part of StableHLO programs; export the cascade without --embedding")
    if os.path.lexists(final) and not (overwrite and os.path.isfile(f"{final}/{HEADER}")):
        raise UserError(f"{directory} is there already; give --overwrite to replace programs, or another folder")
    laid_out = prepare(cascade.stages, Request(prompts=_PROMPTS))
    parts = _parts(cascade)
    programs = _programs(cascade, laid_out, parts)
    partial = final + PARTIAL
    remove_tree(partial)
    try:
        _write(cascade, partial, parts, programs)
        _compare(cascade, partial, parts, programs)
        remove_tree(final)
        os.rename(partial, final)
    except BaseException:
        remove_tree(partial)
        raise


def _names(cascade: "Cascade") -> list[str]:
    return [f"{number}-{name}" for number, name in enumerate(cascade.names)]


def _parts(cascade: "Cascade") -> Parts:
    """Parameters by part of the cascade and dotted name."""
    stages = zip(_names(cascade), cascade.stages, strict=True)
    return {"text": arrays.flat(cascade.encoder.params)} | {name: arrays.flat(one.weights.host) for name, one in stages}


def _padded(cascade: "Cascade", prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 and mask of captions, [b, max_length]."""
    ids = np.zeros((len(prompts), cascade.encoder.config.max_length), np.int32)
    mask = np.zeros(ids.shape, bool)
    for row, tokens in enumerate(cascade.encoder.tokenize(prompts)):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
    return ids, mask


def _programs(cascade: "Cascade", laid_out: CascadePrograms, parts: Parts) -> dict[str, Program]:
    """Functions and shapes of their arguments by the programs' names; the batch is symbolic."""
    (rows,) = jax_export.symbolic_shape("b")
    sizes, length = cascade.encoder.sizes, cascade.encoder.config.max_length
    network = sizes.network()
    null_ids, null_mask = _padded(cascade, [""])

    def shape(*dims: Any, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *dims), dtype)

    def encode(params: Any, ids: Array, mask: Array) -> Array:
        text: Any = network.apply({"params": arrays.nested(params["text"])}, ids, mask)
        return jnp.where(mask[:, :, None], text, 0.0).astype(jnp.float32)

    def sample(params: Any, ids: Array, mask: Array, seeds: Array, numbers: Array) -> Array:
        cond = Conditioning(encode(params, ids, mask), mask)
        null = Conditioning(encode(params, jnp.asarray(null_ids), jnp.asarray(null_mask)), jnp.asarray(null_mask))
        keep = ((ids != null_ids) & mask | (mask != null_mask)).any(axis=1)
        inputs = []
        for one, table in zip(cascade.stages, laid_out.tables, strict=True):
            own, avoided = cond, null
            if one.stage.null_text != "empty":  # As `drawing.as_trained` does.
                own, avoided = drop_text(cond, keep), drop_text(null, jnp.zeros((1,), bool))
            inputs.append(StageInputs(table, np.float32(one.sampling.aug_level), own, avoided, None))
        weights = [arrays.nested(params[name]) for name in _names(cascade)]
        drawn = draw_all(laid_out.stages, laid_out.settings, None, weights, RowInputs(seeds, numbers), inputs)
        return jnp.clip(jnp.round((drawn[-1] + 1.0) * 127.5), 0, 255).astype(jnp.uint8)

    known = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), parts)
    words = {"ids": shape(length, dtype=jnp.int32), "mask": shape(length, dtype=jnp.bool_)}
    numbers = {"seeds": shape(dtype=jnp.uint32), "rows": shape(dtype=jnp.int32)}
    found: dict[str, Program] = {
        "text_encoder": (encode, {"params": {"text": known["text"]}, **words}),
        "sampler": (sample, {"params": known, **words, **numbers}),
    }
    for number, (name, one) in enumerate(zip(_names(cascade), cascade.stages, strict=True)):
        size = laid_out.sizes[number]
        takes = {
            "params": {name: known[name]},
            "z_t": shape(*size, 3),
            "log_snr": shape(),
            "guidance_weight": jax.ShapeDtypeStruct((), jnp.float32),
            "text": shape(length, one.stage.text_embed_dim),
            "mask": shape(length, dtype=jnp.bool_),
            "null_text": jax.ShapeDtypeStruct((1, length, one.stage.text_embed_dim), jnp.float32),
            "null_mask": jax.ShapeDtypeStruct((1, length), jnp.bool_),
            "x0_before": shape(*size, 3),
        }
        if one.stage.low_res_size is not None:
            takes |= {"low_res": shape(*size, 3), "aug_level": shape()}
        found[f"step-{name}"] = (_step(laid_out, number, name), takes)
    return found


def _step(laid_out: CascadePrograms, number: int, name: str) -> Callable[..., Any]:
    """The guided, thresholded estimate of one stage: x0 and eps, [b, h, w, 3] each."""
    stage, settings = laid_out.stages[number], laid_out.settings[number]

    def step(params: Any, z_t: Array, log_snr: Array, guidance_weight: Array, *others: Array) -> tuple[Array, Array]:
        text, mask, null_text, null_mask, x0_before, *enlarged = others
        low_res, aug_level = enlarged or (None, None)
        framing = uncropped(z_t.shape[0], *settings.size) if stage.framing else None
        cond = Conditioning(text=text, text_mask=mask, low_res=low_res, aug_level=aug_level, framing=framing)
        denoiser = GuidedDenoiser(
            stage=stage,
            settings=settings,
            network=stage.network(arrays.nested(params[name]), None),
            cond=cond,
            null=Conditioning(null_text, null_mask),
        )
        found = denoiser.estimate(guidance_weight, x0_before, z_t, log_snr)
        return found.x0, found.eps

    return step


def _write(cascade: "Cascade", folder: str, parts: Parts, programs: Mapping[str, Program]) -> None:
    params, takes = {}, {}
    for part, leaves in parts.items():
        make_dirs(f"{folder}/{part}")
        params[part] = [f"{part}/{file}" for file in arrays.write_arrays(f"{folder}/{part}", leaves, 512 << 20)]
    for name, (function, arguments) in programs.items():
        exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(*arguments.values())
        write_bytes(f"{folder}/{name}{SUFFIX}", bytes(exported.serialize()))
        shapes = {key: one for key, one in arguments.items() if key != "params"}
        takes[name] = {key: f"{one.dtype}[{', '.join(map(str, one.shape))}]" for key, one in shapes.items()}
    released = RELEASED.get(jax.__version__)
    days = datetime.timedelta(days=LOADABLE_DAYS)
    header = {
        "jax": jax.__version__,
        "written": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "loadable_until": released and (datetime.date.fromisoformat(released) + days).isoformat(),
        "written_by": code_version(),
        "platforms": PLATFORMS,
        "max_length": cascade.encoder.config.max_length,
        "vocabulary": os.path.basename(cascade.encoder.config.vocabulary_path),
        "params": params,
        "programs": takes,
    }
    write_json(f"{folder}/{HEADER}", header, end="\n")
    write_bytes(f"{folder}/run.py", _RUNNER.encode())


def _compare(cascade: "Cascade", folder: str, parts: Parts, programs: Mapping[str, Program]) -> None:
    """Raises UserError unless what was written gives what the cascade gives."""
    header = json.loads(Path(folder, "programs.json").read_text())
    read = {
        part: {
            name: leaf
            for file in files
            for name, leaf in arrays.parse_arrays(file, np.fromfile(f"{folder}/{file}", np.uint8)).items()
        }
        for part, files in header["params"].items()
    }
    loaded = {name: jax_export.deserialize(bytearray(Path(folder, name + SUFFIX).read_bytes())) for name in programs}
    ids, mask = _padded(cascade, _PROMPTS)
    numbers = np.arange(len(_PROMPTS), dtype=np.int32)
    images = np.asarray(loaded["sampler"].call(read, ids, mask, np.zeros(len(_PROMPTS), np.uint32), numbers))
    *_, expected = cascade.sample(_PROMPTS, label="")
    wrong = [f"sampler (by {most} of 255)"] if (most := int(np.abs(images.astype(int) - expected).max())) > 1 else []
    for name, (function, arguments) in programs.items():
        if name == "sampler":
            continue
        given = [_filled(key, one) for key, one in arguments.items() if key != "params"]
        if name == "text_encoder":
            given = [ids, mask]
        outputs = [
            jax.tree.leaves(call({part: source[part] for part in arguments["params"]}, *given))
            for call, source in ((loaded[name].call, read), (jax.jit(function), parts))
        ]
        if not all(np.allclose(one, other, TOLERANCE, TOLERANCE) for one, other in zip(*outputs, strict=True)):
            wrong.append(name)
    if wrong:
        raise UserError(f"programs give something else than the cascade: {', '.join(wrong)}; export them again")


def _filled(name: str, one: jax.ShapeDtypeStruct) -> np.ndarray:
    """Fixed values for an argument of a step, two rows where the batch is symbolic."""
    dims = tuple(side if isinstance(side, int) else 2 for side in one.shape)
    if one.dtype == jnp.bool_:
        return np.ones(dims, bool)
    values = np.random.default_rng(len(name)).standard_normal(dims, np.float32)
    return np.full(dims, 0.1, np.float32) if name == "aug_level" else values
