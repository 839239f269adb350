"""Units of a sweep, a batch of one node each, drawn by as many processes and hosts as share the folder.

    OUTPUT/images/KEY/00012/000768.png …   images of a unit, and drawn.json
    OUTPUT/images/KEY/00012/unit.json      written last: the unit is whole
    OUTPUT/images/KEY/failed.json          the node's images are no numbers
    OUTPUT/claims/KEY-00012.lock           a process draws it; see `files.locks`

A process draws a unit while it holds its lock. The lock of a process that has ended is free or is taken over, and who
takes it draws only what is missing.
"""

import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.evals.drawn_images import DrawnItem, draw_missing
from imagen_jax.evals.image_scores import ImageFolder
from imagen_jax.evals.sweeps.plan import Node, Plan
from imagen_jax.evals.sweeps.prompts import PromptList, rows_of
from imagen_jax.files import StrPath, as_path, check_content, files_under, locked, make_dirs, read_json, write_json
from imagen_jax.progress import Progress
from imagen_jax.sampling.images import NoNumbersError, from_uint8

UNIT, FAILED = "unit.json", "failed.json"
# Two stages must not draw from one noise: each shifts the seeds by as much again, a number prime to 2**32.
_SEED_OF_STAGE = 0x9E3779B9
POLL_S = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """The folder of a sweep.

    Args:
      path: local or in a bucket.
      prompts: what each node draws.
      batch_size: images of a unit.
    """

    path: str
    prompts: PromptList
    batch_size: int

    @property
    def units(self) -> list[range]:
        """Numbers of the images of each unit."""
        return list(rows_of(len(self.prompts.prompts), self.batch_size))

    def of_node(self, node: Node) -> str:
        """The folder of a node's images."""
        return os.path.join(self.path, "images", node.key)

    def of_unit(self, node: Node, unit: int) -> str:
        """The folder of a unit's images."""
        return os.path.join(self.of_node(node), f"{unit:05d}")

    def names(self, unit: int) -> list[str]:
        """The files of a unit's images."""
        return [f"{row:06d}.png" for row in self.units[unit]]

    def image_names(self) -> list[str]:
        """The files of all images of a node, from its folder on."""
        return [f"{unit:05d}/{name}" for unit in range(len(self.units)) for name in self.names(unit)]

    def failure(self, node: Node | None) -> str:
        """The failure of a node or below it; "" if nothing did."""
        while node is not None:
            path = as_path(self.of_node(node)) / FAILED
            if path.is_file():
                return str(_read(path, {"message": str})["message"])
            node = node.below
        return ""


class State:
    """Finished units, as far as this process has seen.

    Args:
      folder: of the sweep.
    """

    def __init__(self, folder: Folder):
        self._folder = folder
        self._files: dict[str, int] = {}
        self.look()

    def look(self) -> None:
        """Lists the folder anew."""
        self._files = files_under(os.path.join(self._folder.path, "images"))

    def look_at(self, node: Node, unit: int) -> None:
        """Looks at one unit again."""
        for name, size in files_under(self._folder.of_unit(node, unit)).items():
            self._files[f"{node.key}/{unit:05d}/{name}"] = size

    def finished(self, node: Node, unit: int) -> bool:
        """Tells if a unit is whole: an image that was removed since is to be drawn again."""
        return all(f"{node.key}/{unit:05d}/{name}" in self._files for name in (UNIT, *self._folder.names(unit)))

    def failed(self, node: Node | None) -> bool:
        """Tells if a node failed, or one below it."""
        return node is not None and (f"{node.key}/{FAILED}" in self._files or self.failed(node.below))

    def add(self, node: Node, name: str) -> None:
        """Notes a file that this process wrote, from the node's folder on."""
        self._files[f"{node.key}/{name}"] = 0

    def bytes_and_images(self, node: Node) -> tuple[int, int]:
        """Bytes and number of the images of a node."""
        sizes = [
            size for name, size in self._files.items() if name.startswith(f"{node.key}/") and name.endswith(".png")
        ]
        return sum(sizes), len(sizes)


def draw_plan(plan: Plan, folder: Folder) -> int:
    """Draws what is missing, and waits for what others draw.

    Args:
      plan: of the sweep.
      folder: of the sweep.

    Returns:
      Images that this process drew.
    """
    make_dirs(os.path.join(folder.path, "claims"))
    state, drawn = State(folder), 0
    jobs = [(node, unit) for node in plan.nodes for unit in range(len(folder.units))]
    open_jobs = [job for job in jobs if not state.finished(*job)]
    with Progress(len(jobs), "sweep", "batch", initial=len(jobs) - len(open_jobs)) as progress:
        while open_jobs:
            left = []
            for node, unit in open_jobs:
                if state.finished(node, unit) or state.failed(node):
                    progress.update()
                    continue
                number = _try(folder, state, node, unit)
                if number is None:
                    left.append((node, unit))
                else:
                    drawn += number
                    progress.update()
            if len(left) == len(open_jobs):
                time.sleep(POLL_S)
            if left:
                state.look()
            open_jobs = left
    return drawn


def read_unit(folder: Folder, node: Node, unit: int) -> dict[str, Any]:
    """The note of a finished unit: its images drawn, seconds and device.

    Raises:
      UserError: the note is damaged.
    """
    path = os.path.join(folder.of_unit(node, unit), UNIT)
    return _read(path, {"images": int, "seconds": float, "device": str})


def _read(path: StrPath, wanted: dict[str, Any]) -> dict[str, Any]:
    fix = "remove it, and the sweep goes on from there"
    try:
        found = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {fix}") from error
    check_content(path, found, wanted, fix)
    return dict(found)


def _try(folder: Folder, state: State, node: Node, unit: int) -> int | None:
    """Draws a unit; None where that is not to be done now: another process has it, or what is below is missing."""
    if node.below is not None and not state.finished(node.below, unit):
        return None
    with locked(os.path.join(folder.path, "claims", f"{node.key}-{unit:05d}.lock")) as held:
        if not held:
            return None
        state.look_at(node, unit)
        if state.finished(node, unit):
            return 0
        number, start = 0, time.perf_counter()
        try:
            for _ in _draw_unit(folder, node, unit):
                number += 1
        except NoNumbersError as error:
            write_json(os.path.join(folder.of_node(node), FAILED), {"message": str(error).partition(";")[0]})
            print(f"{node.key} failed: {error}; the points that need it are left out, the others go on")
            state.add(node, FAILED)
            return number
        facts = {"images": number, "seconds": time.perf_counter() - start, "device": device()}
        write_json(os.path.join(folder.of_unit(node, unit), UNIT), facts)
        for name in (UNIT, *folder.names(unit)):
            state.add(node, f"{unit:05d}/{name}")
        return number


def _draw_unit(folder: Folder, node: Node, unit: int) -> Iterator[Any]:
    rows = folder.units[unit]
    items = [
        DrawnItem(
            prompt=folder.prompts.prompts[row],
            seed=(folder.prompts.seeds[row] + node.number * _SEED_OF_STAGE) % 2**32,
            name=name,
        )
        for row, name in zip(rows, folder.names(unit), strict=True)
    ]
    low_res = None
    if node.below is not None:
        below = folder.of_unit(node.below, unit)
        low_res = from_uint8(np.stack([*ImageFolder(below, folder.names(unit))]))
    yield from draw_missing(
        node.cascade,
        items,
        folder.of_unit(node, unit),
        rows=range(len(items)),  # The last unit is filled up: another size would be another program.
        low_res=low_res,
        batch_size=folder.batch_size,
        label="",
        told={"below": None if node.below is None else node.below.key},
    )


def device() -> str:
    """The kind and number of this process's devices."""
    found = jax.local_devices()
    return f"{len(found)} {found[0].device_kind}"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Work that is left: images there and missing, seconds and bytes to come; None where nothing was timed yet."""

    kept: int
    missing: int
    seconds: float | None
    untimed: tuple[str, ...]
    num_bytes: int


def estimate(plan: Plan, folder: Folder) -> Estimate:
    """Looks at what is there; seconds from the units that were timed, of the same stage and number of steps."""
    state = State(folder)
    rates: dict[tuple[str, int], list[float]] = {}
    kept = missing = num_bytes = 0
    open_images: dict[tuple[str, int], int] = {}
    for node in plan.nodes:
        (stage,) = node.cascade.stages
        kind = (stage.stage.name, stage.sampling.num_steps)
        there, number = state.bytes_and_images(node)
        kept += number
        todo = 0 if state.failed(node) else len(folder.prompts.prompts) - number
        missing += todo
        open_images[kind] = open_images.get(kind, 0) + todo
        num_bytes += todo * (there // number if number else 3 * stage.stage.draw_size**2)
        for unit in range(len(folder.units)):
            if state.finished(node, unit):
                facts = read_unit(folder, node, unit)
                if facts["images"]:
                    rates.setdefault(kind, []).append(facts["seconds"] / facts["images"])
    untimed = tuple(
        f"{name}, {steps} steps" for (name, steps), n in open_images.items() if n and (name, steps) not in rates
    )
    seconds = None if untimed else float(sum(n * np.median(rates[kind]) for kind, n in open_images.items() if n))
    return Estimate(kept, missing, seconds, untimed, num_bytes)
