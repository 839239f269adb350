"""Small files of a run directory that name one of its checkpoints.

MODEL_DIR/best.json: the checkpoint whose evaluation was the best; pruning never takes it.
MODEL_DIR/finished.json: the last checkpoint of a run that did all its updates.
"""

from collections.abc import Mapping
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.files import AnyPath, StrPath, as_path, check_content, read_json, write_json

BEST, FINISHED = "best.json", "finished.json"


def best_step(model_dir: StrPath) -> int | None:
    """Step that best.json names, None where there is no such file.

    Raises:
      UserError: the file is damaged.
    """
    return _step(as_path(model_dir) / BEST)


def finished_step(model_dir: StrPath) -> int | None:
    """Step at which the run was done, None while it is not; see `best_step`.

    A run that goes on after that has newer checkpoints.
    """
    return _step(as_path(model_dir) / FINISHED)


def write_best(model_dir: StrPath, step: int, facts: Mapping[str, Any]) -> None:
    """Names the best checkpoint.

    Args:
      model_dir: run directory.
      step: of the checkpoint.
      facts: what it is the best by, for people: plain data.
    """
    write_json(as_path(model_dir) / BEST, {"step": step, **facts}, end="\n")


def write_finished(model_dir: StrPath, step: int) -> None:
    """Notes that the run is done after `step` updates."""
    write_json(as_path(model_dir) / FINISHED, {"step": step}, end="\n")


def _step(path: AnyPath) -> int | None:
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it") from error
    check_content(path, found, {"step": int}, "remove it")
    return int(found["step"])
