"""Faults of checkpoints that lie on the disk: none is restored in silence, training goes on from the one before."""

import dataclasses
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from imagen_jax.checkpoints import checkpoints, folders, proof
from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.train import setup
from tests.checkpoints.test_checkpoints import make_state, save
from tests.train import tiny_run

GOOD, BAD = 3, 9


def flip(file: Path, chooser: random.Random) -> str:
    """Flips one bit of a file."""
    content = bytearray(file.read_bytes())
    place, bit = chooser.randrange(len(content)), chooser.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {place} of {file.name}"


def truncate(file: Path, chooser: random.Random) -> str:
    """Cuts a file short, perhaps to nothing."""
    size = chooser.randrange(file.stat().st_size)
    with file.open("r+b") as stream:
        stream.truncate(size)
    return f"{file.name} cut to {size} bytes"


def lose(file: Path, chooser: random.Random) -> str:
    """Removes a file."""
    file.unlink()
    return f"{file.name} is missing"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with two checkpoints, and the abstract state."""
    root = tmp_path_factory.mktemp("run")
    state, abstract = make_state(GOOD)
    save(root, state)
    save(root, make_state(BAD)[0])
    return root, state, abstract


def start(root: Path, abstract):
    """The start that training makes there."""
    config = tiny_run.tiny_config(root)
    parts = dataclasses.replace(setup.TrainSetup.build(config, jax.devices()[:1]), state=abstract)
    return setup._own_checkpoint(config, parts)


def after_fault(source: Path, root: Path, fault: Callable[[Path, random.Random], str], seed: int) -> str:
    """Makes a copy of the run with one fault in the newest checkpoint, and tells what it is."""
    shutil.copytree(source, root)
    chooser = random.Random(seed)
    newest = folders.checkpoint_dir(root, BAD)
    files = sorted(file for file in newest.rglob("*") if file.is_file() and file.stat().st_size)
    return fault(chooser.choice(files), chooser)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [flip, truncate, lose])
def test_100_faults_are_all_found_and_the_previous_step_is_used(run, tmp_path, monkeypatch, fault):
    """With all of the reading but orbax's, which comes after it and never where a digest is wrong."""
    source, _, abstract = run

    def read(path: Path, abstract: TrainState):
        proof.verify(path)
        return abstract, {"from": path.name}

    monkeypatch.setattr(checkpoints, "_restored", read)
    wrong = []
    for seed in range(100):
        root = tmp_path / str(seed)
        told = after_fault(source, root, fault, seed)
        _, position, origin = start(root, abstract)
        as_before = position == {"from": f"checkpoint_{GOOD}"} and folders.saved_steps(root) == [GOOD]
        kept = [path.name for path in folders.quarantined(root)] == [f"checkpoint_{BAD}.damaged"]
        if not (as_before and kept and f"goes on from its own checkpoint of step {GOOD}" in origin):
            wrong.append(told)
        shutil.rmtree(root)
    assert wrong == []


@pytest.mark.parametrize("fault", [flip, truncate, lose])
def test_what_is_restored_after_a_fault_is_the_previous_state_bit_for_bit(run, tmp_path, fault):
    source, state, abstract = run
    after_fault(source, tmp_path / "run", fault, 0)
    restored, position, _ = start(tmp_path / "run", abstract)
    assert tiny_run.leaves_equal(state, restored) and position == {"step": GOOD}


def test_what_kills_left_half_written_is_passed_over_and_cleaned(run, tmp_path):
    source, _, abstract = run
    root = tmp_path / "run"
    shutil.copytree(source, root)
    for step in (5, 12):
        shutil.copytree(folders.checkpoint_dir(root, BAD), root / "checkpoints" / f"checkpoint_{step}.partial")
    assert folders.saved_steps(root) == [GOOD, BAD]
    checkpoints.remove_partial(root)
    assert sorted(entry.name for entry in (root / "checkpoints").iterdir()) == [
        f"checkpoint_{GOOD}",
        f"checkpoint_{BAD}",
    ]
    assert start(root, abstract)[1] == {"step": BAD}
