"""Runs a pipeline once for every point of a grid of overrides, by any launcher.

    imagen_jax script launch/sweep.py --config launch/configs/sweep_demo.py [--dry_run] [--action=status|logs|cancel]

The pipeline is a config of that launcher. Point I of the grid gets the overrides of I, OUT_DIR/I and the name NAME-I.
Slices, JobSets and Slurm's jobs run side by side; on this machine one pipeline runs after the other.
"""

import ast
import importlib
import importlib.util
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

sys.path.append(str(Path(__file__).resolve().parents[1]))

from imagen_jax.errors import UserError  # noqa: E402
from imagen_jax.files import as_path, make_dirs, shipped_file, write_json  # noqa: E402
from launch.jobs import command_line  # noqa: E402

LAUNCHERS = ("local", "tpu_vm", "gke", "slurm")


def load_config(path: str) -> ConfigDict:
    """The config of a file, by its place in the repository or anywhere.

    Raises:
      UserError: there is no such file.
    """
    found = shipped_file(path)
    spec = importlib.util.spec_from_file_location("swept_config", found)
    if spec is None or spec.loader is None or not Path(found).is_file():
        raise UserError(f"--config.pipeline ({path!r}) is no config file; give e.g. launch/configs/demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def set_field(config: ConfigDict, setting: str) -> None:
    """Sets NAME=VALUE, or PART.NAME=VALUE, in a config.

    Raises:
      UserError: it has no such field, or one of another type.
    """
    name, equals, text = setting.partition("=")
    *parts, last = name.split(".")
    try:
        owner = config
        for part in parts:
            owner = owner[part]
        value = text if isinstance(owner[last], str) else ast.literal_eval(text)
        owner[last] = value
    except (KeyError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise UserError(f"--config.settings: {setting!r} does not fit the pipeline's config ({error})") from error


def points(grid: Sequence[tuple[str, Sequence[Any]]]) -> Iterator[tuple[str, ...]]:
    """Overrides of every point: one value of each name, the last name's changing fastest.

    Args:
      grid: pairs of a gin name and its values.
    """
    for values in itertools.product(*(values for _, values in grid)):
        yield tuple(f"{name}={value}" for (name, _), value in zip(grid, values, strict=True))


def configs_of(sweep: Mapping[str, Any]) -> list[ConfigDict]:
    """The config of every point.

    Raises:
      UserError: the grid is empty, or the pipeline's config lacks a field.
    """
    found = []
    for number, overrides in enumerate(points(sweep["grid"])):
        config = load_config(sweep["pipeline"])
        for setting in sweep["settings"]:
            set_field(config, setting)
        config.out_dir = f"{sweep['out_dir'].rstrip('/')}/{number}"
        config.overrides = (*config.overrides, *overrides)
        if "name" in config:
            config.name = f"{config.name}-{number}"
        if "log_dir" in config:
            config.log_dir = f"{config.out_dir}/launch"
        found.append(config)
    if not found:
        raise UserError("--config.grid has a name without values; give each at least one")
    return found


def launch(configs: Sequence[Mapping[str, Any]], action: str, dry_run: bool) -> int:
    """Runs sweeps, or asks about them; the exit code is that of their launcher."""
    code = 0
    for sweep in configs:
        if sweep["launcher"] not in LAUNCHERS:
            raise UserError(f"--config.launcher ({sweep['launcher']!r}) must be one of {', '.join(LAUNCHERS)}")
        pipelines = configs_of(sweep)
        if action == "run" and not dry_run:
            out_dir = as_path(sweep["out_dir"])
            make_dirs(out_dir)
            listed = [{"point": number, "overrides": one} for number, one in enumerate(points(sweep["grid"]))]
            write_json(out_dir / "sweep.json", listed, indent=2, end="\n")
        launcher = importlib.import_module(f"launch.{sweep['launcher']}")
        code = max(code, launcher.launch(pipelines, action, dry_run))
    return code


if __name__ == "__main__":
    command_line.main(launch, "launch/configs/sweep_demo.py")
