"""A copy of a pretrained encoder in orbax's format (the `import_text` mode).

    DIR/
      encoder.json   architecture ("t5" where it is not stated), sizes, digests of the parameters and of every file
                     below; written last
      arrays/        orbax: the parameters in t5x's names, layers apart

The parameters pass through the host one at a time, whatever the size of the model. orbax returns flipped bytes as
values without a word, hence the digests; a copy is verified when it is opened.
"""

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from imagen_jax.errors import UserError
from imagen_jax.files import (
    absolute,
    alone_in,
    as_path,
    files_under,
    is_remote,
    make_dirs,
    remove_tree,
    send_files,
    sha256_of_file,
    write_json,
)
from imagen_jax.progress import Progress
from imagen_jax.text.encoders.config import EncoderConfig
from imagen_jax.text.encoders.t5_params import ParamsDigest
from imagen_jax.text.weights.checkpoint_arrays import COPY_ARRAYS, COPY_HEADER, is_copy, read_copy_header
from imagen_jax.text.weights.pretrained import EncoderCheckpoint, held_dtypes, open_checkpoint

FORMAT_VERSION = 1
PARTIAL, LOCK = ".partial", ".lock"


@dataclasses.dataclass(frozen=True)
class _Unread:
    """A parameter that is read when orbax comes to write it; looks like an array until then."""

    checkpoint: EncoderCheckpoint
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    digest: ParamsDigest
    progress: Progress

    @property
    def size(self) -> int:
        """Elements."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The parameter itself."""
        value = self.checkpoint.read(self.path, (slice(None),) * len(self.shape), self.dtype)
        self.digest.add(self.path, value)
        self.progress.update(1)
        return value


class _OneAtATime(ocp.type_handlers.NumpyHandler):
    """Writes parameters as NumPy arrays, each read only when the one before is on disk."""

    async def serialize(
        self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        """See orbax's TypeHandler."""
        for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
            for written in await super().serialize([value.read()], [info], [arg]):
                written.result()
        return []


def import_text(
    source: str,
    directory: str,
    *,
    dtype: str = "float32",
    config: EncoderConfig | None = None,
    overwrite: bool = False,
) -> None:
    """Copies the encoder of a t5x checkpoint or a Hugging Face folder.

    Args:
      source: what `load_encoder` takes.
      directory: the copy to write.
      dtype: of the matrices, "float32" or "bfloat16"; norms and biases stay float32.
      config: sizes; None infers them.
      overwrite: replace a copy that is there.

    Raises:
      UserError: the source cannot be read (see `load_encoder`), something else is in the way, or another process writes
        the same copy.
    """
    checkpoint = open_checkpoint(source, config)
    config = checkpoint.config.replaced(dtype=dtype, scan_layers=False)
    checkpoint = dataclasses.replace(checkpoint, config=config)
    final = absolute(directory)
    # Beside the copy: its header names every file within.
    parent, name = os.path.split(final.rstrip("/"))
    if is_remote(final) and not is_remote(parent):
        raise UserError(f"{directory!r} is a whole bucket; name a folder in it, as {final.rstrip('/')}/t5")
    with alone_in(parent, f"{name}{LOCK}", f"{directory!r}", "written"):
        _write_copy(checkpoint, source, final, overwrite)


def _write_copy(checkpoint: EncoderCheckpoint, source: str, final: str, overwrite: bool) -> None:
    there = bool(files_under(final)) if is_remote(final) else os.path.exists(final)
    if there and not (overwrite and is_copy(final)):
        hint = "set --overwrite to replace it" if is_copy(final) else "it is no encoder copy: choose another"
        raise UserError(f"{final} exists already; {hint}")
    # In a bucket nothing is renamed: a copy is one once it has its header, which comes last.
    partial = final if is_remote(final) else final + PARTIAL
    remove_tree(partial)
    make_dirs(partial)
    try:
        if is_remote(final):
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as here:
                header = _write_arrays(checkpoint, source, here)
                files = {name: digest for name, (_, digest) in send_files(here, final).items()}
        else:
            header = _write_arrays(checkpoint, source, partial)
            files = {name: sha256_of_file(os.path.join(partial, name)) for name in files_under(partial)}
    except BaseException as error:
        remove_tree(partial)
        if isinstance(error, ValueError | RuntimeError) and not isinstance(error, UserError):
            # What tensorstore makes of a full disk.
            raise OSError(f"{final} could not be written: {str(error).partition(chr(10))[0]}") from error
        raise
    write_json(os.path.join(partial, COPY_HEADER), {**header, "files": files}, sync=True)
    if partial != final:
        remove_tree(final)
        os.rename(partial, final)


def _write_arrays(checkpoint: EncoderCheckpoint, source: str, folder: str) -> dict[str, Any]:
    """Writes the parameters into a folder of this machine; the copy's header, but for the digests of the files."""
    config = checkpoint.config
    held = held_dtypes(config)
    digest = ParamsDigest()
    with Progress(len(held), "import_text", "parameter") as progress:
        tree: dict[str, Any] = {}
        for path, leaf in held.items():
            node = tree
            *parents, last = path.split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = _Unread(checkpoint, path, leaf.shape, np.dtype(leaf.dtype), digest, progress)
        registry = ocp.type_handlers.create_type_handler_registry((_Unread, _OneAtATime(deepcopy_host_arrays=False)))
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(as_path(os.path.join(folder, COPY_ARRAYS)), args=ocp.args.PyTreeSave(tree))
    return {
        "format_version": FORMAT_VERSION,
        "source": source,
        "architecture": config.architecture,
        "config": config.to_json(),
        "params_sha256": digest.hexdigest(),
        "shapes": {path: list(leaf.shape) for path, leaf in held.items()},
    }


def known_sha256(path: str, dtype: str) -> str | None:
    """`params_sha256` of a copy held in its own dtype, without reading it; None for anything else."""
    if not is_copy(path):
        return None
    header = read_copy_header(path)
    return header["params_sha256"] if header["config"].get("dtype") == dtype else None
