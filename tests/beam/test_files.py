"""Files between the steps of a pipeline: items come back equal, and reading them runs nothing."""

import functools
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# `make beam-test` installs it.
pytest.importorskip("apache_beam")

from imagen_jax.beam.build import _outcomes_of, _Prepare, _taken_apart
from imagen_jax.beam.files import (
    load_item,
    packed,
    remove_abandoned,
    save_items,
    shared_folder,
    unpacked,
    write_records,
)
from imagen_jax.data.builder import BuildConfig
from imagen_jax.data.raw import RawExample, Rejection
from imagen_jax.errors import UserError
from imagen_jax.files import as_path, files_under, write_bytes

DIES = """
import os, sys
from imagen_jax.beam.files import shared_folder
from imagen_jax.files import as_path, write_bytes
with shared_folder(as_path(sys.argv[1]), "work-") as folder:
    write_bytes(folder / "left", b"1")
    os.kill(os.getpid(), 9)
"""
PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self._path = str(path)

    def __reduce__(self) -> Any:
        return open, (self._path, "w")


def test_items_come_back() -> None:
    examples = [
        RawExample(key="a", image="x/\udcff.png", caption="täglich 🐈", split="val", meta={"n": [1, 2.5, None]}),
        RawExample(key="b", image=b"\x00\xff", caption="c"),
        Rejection(source="d", reason="e"),
    ]
    assert unpacked(packed([7, examples, {"word": True}])) == [7, examples, {"word": True}]
    back = unpacked(packed(RawExample(key="p", image=PIXELS, caption="c")))
    np.testing.assert_array_equal(back.image, PIXELS)
    assert unpacked(packed(RawExample(key="p", image=Path("q/r.png"), caption="c"))).image == "q/r.png"


def test_a_pickle_in_their_place_runs_nothing(tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_records(tmp_path / "items", [pickle.dumps(Harm(made))])
    with pytest.raises(UserError, match="is damaged"):
        load_item(tmp_path / "items", 0, 1)
    assert not made.exists()


@pytest.mark.parametrize("item", [object(), np.zeros(3), {1, 2}, 2**70, Harm(Path("x"))], ids=range(5))
def test_what_is_no_plain_data_is_refused(tmp_path: Path, item: Any) -> None:
    with pytest.raises(UserError, match="cannot be handed to workers"):
        save_items(tmp_path / "items", [[item]])


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_folders_of_killed_processes_go_and_those_in_use_stay(kind: str, request, tmp_path: Path) -> None:
    place = as_path(tmp_path / "place")
    if kind == "bucket":
        request.getfixturevalue("bucket")
        place = as_path("gs://bucket-a/place")
    remove_abandoned(place, "work-")
    subprocess.run([sys.executable, "-c", DIES, str(place)], check=False)
    with shared_folder(place, "work-") as folder:
        write_bytes(folder / "in use", b"1")
        assert sum(not name.endswith(".lock") for name in files_under(place)) == 2
        remove_abandoned(place, "work-")
        assert [name.partition("/")[2] for name in files_under(place) if not name.endswith(".lock")] == ["in use"]
    assert not files_under(place)


def test_parts_share_their_functions(tmp_path: Path) -> None:
    """Of a list of millions of rows the pipeline itself holds one function; elements are of builtin types."""
    rows = [RawExample(key=f"k{i}", image=PIXELS, caption="c") for i in range(3)]
    parts = [functools.partial(iter, rows[i : i + 1]) for i in range(3)] + [functools.partial(iter, rows)]
    functions, arguments = _taken_apart(parts)
    assert functions == [iter]
    save_items(tmp_path / "parts", arguments)
    prepare = _Prepare(tmp_path, BuildConfig(name="t", image_size=2), functions, len(arguments))
    keys = list(prepare.process(3))
    outcomes = load_item(_outcomes_of(tmp_path, 3), 0, 1)
    assert [one["key"] for one in outcomes] == ["k0", "k1", "k2"]
    assert [one.value for one in keys] == [("k0", (3, 0)), ("k1", (3, 1)), ("k2", (3, 2))]
    assert all(_is_plain(one.value) for one in keys)


def _is_plain(value: Any) -> bool:
    """Beam's own coder writes these as they are, and pickles anything else."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.items()))
    return type(value) in (int, str, bytes, bool, float, type(None))
