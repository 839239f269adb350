"""Run directories as `sample`, `train` and `upgrade_run` read them: spoilt files, with digests that tell or that agree
with the damage, and odd names beside the checkpoints."""

import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from imagen_jax.checkpoints import checkpoints, folders, plain_data, proof
from imagen_jax.checkpoints.trained_stage import StageRecord
from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.checkpoints.upgrade import upgrade_run
from imagen_jax.errors import UserError
from imagen_jax.files import sha256_of_file
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.text import encoder
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.tokenizer import train_sentencepiece
from imagen_jax.train.setup import TrainSetup, start_state
from imagen_jax.train.state import init_state
from tests import tiny
from tests.fuzz.folders import Folder
from tests.fuzz.mutate import damaged, odd_text
from tests.fuzz.running import fuzz
from tests.train import tiny_run

_OLD_CONFIG = Path(__file__).parents[1] / "golden" / "run_of_0_1" / "base.gin"
_STEPS = (3, 6)


@pytest.fixture(scope="module")
def setup() -> TrainSetup:
    return TrainSetup.build(tiny_run.tiny_config("none"), jax.devices()[:1])


@pytest.fixture(scope="module")
def state(setup: TrainSetup) -> TrainState:
    return jax.jit(lambda: init_state(setup.objective, setup.settings.optimizer, 0))()


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, state: TrainState) -> Path:
    tmp_path = tmp_path_factory.mktemp("whole")
    train_sentencepiece(["a red cube", "zwei blaue Kugeln"], str(tmp_path / "v.model"), 40)
    sizes = T5Config(vocab_size=64, embed_dim=12, num_heads=2, head_dim=8, num_layers=1, mlp_dim=32)
    text = TextEncoder(TextConfig(encoder=sizes, vocabulary_path=str(tmp_path / "v.model"), max_length=6))
    record = StageRecord.of_run(tiny.BASE, SamplingConfig(), text, "")
    for step in _STEPS:
        files = record.files(folders.checkpoint_dir(tmp_path / "run", step))
        checkpoints.save(tmp_path / "run", state.replace(step=state.step + step), {"step": step}, files, keep=2)
    return tmp_path / "run"


@pytest.fixture
def run(tmp_path: Path, whole_run: Path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


@pytest.fixture
def bytes_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has orbax read the same bytes once: what it gives, or raises, is a function of them."""
    for name in ("_metadata", "_restore_item"):
        monkeypatch.setattr(checkpoints, name, _remembered(getattr(checkpoints, name)))
    # Threads cost more than hashing so little.
    monkeypatch.setattr(proof, "sha256_of_files", lambda paths: list(map(sha256_of_file, paths)))


def _remembered(read: Callable[..., Any]) -> Callable[..., Any]:
    seen: dict[Any, tuple[Any, UserError | None]] = {}

    def remember(path: Path, item: str, *abstract: Any) -> Any:
        content, arrays = hashlib.sha256(), path / "arrays"
        for file in sorted(one for one in (*arrays.glob("*"), *(arrays / item).rglob("*")) if one.is_file()):
            content.update(b"%s\0%d\0" % (bytes(file.relative_to(path)), file.stat().st_size) + file.read_bytes())
        key = content.digest(), item, str(abstract)
        if key not in seen:
            try:
                seen[key] = read(path, item, *abstract), None
            except UserError as error:
                seen[key] = None, error
        found, error = seen[key]
        if error is not None:
            raise error.with_traceback(None)
        return found

    return remember


def _is_small(model: Any) -> bool:
    """Tells if a network would be traced in a moment."""
    values = [getattr(model, name) for name in plain_data.fields_of(type(model))]
    numbers = [one for value in values for one in (value if isinstance(value, tuple) else (value,))]
    return all(one <= 64 for one in numbers if isinstance(one, int | float))


def _same(one: Any, two: Any) -> bool:
    return tiny_run.leaves_equal(jax.tree.map(np.asarray, one), jax.tree.map(np.asarray, two))


def _says(name: str, content: bytes) -> Any:
    """Meaning of a file: of two lists of digests that differ in a space neither is damaged."""
    return json.loads(content) if name == folders.DIGESTS else content


@pytest.mark.usefixtures("bytes_read_once")
@pytest.mark.parametrize("loved", ["stage.json", "arrays/ema_params/_METADATA"])
@pytest.mark.parametrize("sealed", [False, True])
def test_what_sampling_loads(pytestconfig, run, state, loved, sealed):
    """Damage that the digests tell is refused; that with digests of its own is refused or is what it says."""
    newest = folders.checkpoint_dir(run, _STEPS[-1])
    folder = Folder(newest, loved, 0.7)
    whole = Cascade.load(str(run))

    def make(chance: random.Random) -> tuple[str, bytes]:
        case = folder.spoil(chance)
        if sealed:
            proof.write_digests(newest)
        return case

    def attempt(case: tuple[str, bytes]) -> None:
        found = Cascade.load(str(run))
        (one,) = found.stages
        if sealed and case[0] == "stage.json" and _is_small(one.stage.model):
            # Its parameters are those of another network, as drawing then says.
            with pytest.raises(UserError):
                one.weights.on_devices(one.stage, None)
        if not sealed:
            assert _says(*case) == _says(case[0], folder.whole[case[0]]), "nobody noticed"
            assert found.stages[0].stage == whole.stages[0].stage
            assert _same(found.stages[0].weights.host, state.ema_params)

    door = f"sampling {'sealed' if sealed else 'damaged'} {loved}"
    fuzz(pytestconfig, door, make, attempt, share=0.25)


@pytest.mark.usefixtures("bytes_read_once")
@pytest.mark.parametrize("sealed", [False, True])
def test_what_training_resumes(pytestconfig, run, setup, state, sealed):
    """A damaged newest checkpoint is set aside, not lost, and the one before it goes on with its own values."""
    folder = Folder(run / "checkpoints", "checkpoint_6/position.json", 0.4)
    config = tiny_run.tiny_config(run)

    def make(chance: random.Random) -> tuple[str, bytes]:
        name, content = folder.spoil(chance)
        if sealed:
            proof.write_digests(run / "checkpoints" / name.split("/")[0])
        return name, content

    def attempt(case: tuple[str, bytes]) -> None:
        found, position, _ = start_state(config, setup)
        assert isinstance(position, dict) and int(found.step) >= 0
        if sealed:
            return
        step = int(found.step)
        assert step in _STEPS and position == {"step": step} and _same(found.ema_params, state.ema_params)
        aside = run / "checkpoints" / case[0].replace("checkpoint_6/", "checkpoint_6.damaged/")
        assert step == 6 or aside.read_bytes() == case[1]

    door = f"resuming {'sealed' if sealed else 'damaged'}"
    fuzz(pytestconfig, door, make, attempt, writes=run, share=0.5)


_NAMES = ("checkpoint_٣", "checkpoint_007", "checkpoint_9", "checkpoint_-1", "checkpoint_9.partial", "checkpoint_9 ",
          "checkpoint_9.damaged", "checkpoint_6.damaged", "checkpoint_6.partial", "checkpoint_x", "CHECKPOINT_9",
          ".DS_Store", "checkpoint_" + "9" * 30, "checkpoint_²", "checkpoint_9\n", "checkpoint_",
          "lost+found")  # fmt: skip


@pytest.mark.usefixtures("bytes_read_once")
def test_odd_names_beside_checkpoints(pytestconfig, run, setup, state, monkeypatch):
    """Files and folders with names like those of checkpoints; none of the user's own is lost."""
    root, config = run / "checkpoints", tiny_run.tiny_config(run)
    kept = run.parent / "kept"
    shutil.copytree(root, kept)

    @contextlib.contextmanager
    def saver() -> Iterator[SimpleNamespace]:
        """Writes what orbax would: the arrays are those of another step."""
        yield SimpleNamespace(save=lambda path, args: shutil.copytree(kept / "checkpoint_6" / "arrays", path))

    monkeypatch.setattr(checkpoints, "_saver", saver)

    def make(chance: random.Random) -> list[tuple[str, str]]:
        shutil.rmtree(root)
        shutil.copytree(kept, root, copy_function=os.link)
        names = chance.sample(_NAMES, chance.randint(1, 3))
        if chance.random() < 0.3:
            tail = odd_text(chance).translate({ord("/"): "_", 0: "_"})[:40]
            names[0] = "checkpoint_" + tail.encode(errors="ignore").decode()
        made = [(name, chance.choice(("a file", "a folder", "a copy", "a link", "a loop"))) for name in set(names)]
        for name, kind in made:
            path = root / name
            if path.exists():
                continue
            if kind == "a file":
                path.write_text("x")
            elif kind == "a folder":
                path.mkdir()
            elif kind == "a copy":
                shutil.copytree(root / "checkpoint_3", path)
            else:
                path.symlink_to(root / "checkpoint_3" if kind == "a link" else path)
        return made

    later = state.replace(step=state.step + 12)

    def attempt(made: list[tuple[str, str]]) -> None:
        before = {path.name for path in root.iterdir() if not path.name.endswith(".partial")}
        try:
            checkpoints.remove_partial(run)
            found, _, _ = start_state(config, setup)
            assert int(found.step) in _STEPS and _same(found.ema_params, state.ema_params)
            Cascade.load(str(run))
            checkpoints.save(run, later, {"step": 12}, {}, keep=10)
        except UserError as error:
            raise AssertionError("sound checkpoints are refused") from error
        finally:
            now = {path.name for path in root.iterdir()}
            assert {name for name in before - now if not os.path.lexists(root / f"{name}.damaged")} == set()

    fuzz(pytestconfig, "names of checkpoints", make, attempt, writes=run)


@pytest.mark.usefixtures("bytes_read_once")
def test_configs_of_old_runs(pytestconfig, tmp_path, state, monkeypatch):
    """Nothing that an old config.gin says is run, and a checkpoint without a record stays as it is when refused."""
    # Most configs that are accepted say the same of the encoder.
    monkeypatch.setattr(encoder, "random_params", functools.cache(encoder.random_params))
    config = _OLD_CONFIG.read_bytes()
    checkpoints.save(tmp_path / "run", state, {"step": 0}, {"config.gin": config}, keep=1)
    path = folders.checkpoint_dir(tmp_path / "run", 0)
    folder = Folder(path, "config.gin", 1.0)
    train_sentencepiece(["a red cube", "zwei blaue Kugeln"], str(tmp_path / "v.model"), 40)

    def make(chance: random.Random) -> tuple[str, bytes]:
        case = folder.spoil(chance, lambda chance, content: damaged(chance, content, [b"@", b"os.system", b"None"]))
        proof.write_digests(path)
        return case

    def attempt(case: tuple[str, bytes]) -> None:
        try:
            upgrade_run(tmp_path / "run", str(tmp_path / "v.model"))
        except UserError:
            assert not (path / "stage.json").exists()
            proof.verify(path)
            raise
        try:
            StageRecord.read(path)
        except UserError as error:
            raise AssertionError("an upgrade that cannot be read") from error

    fuzz(pytestconfig, "upgrade_run", make, attempt, writes=path)
