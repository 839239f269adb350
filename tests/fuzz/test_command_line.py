"""Words on the command line: flags of every mode, and what gin files and --gin flags bind."""

import io
import random
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from PIL import Image

from imagen_jax import gin_config
from imagen_jax.data import builder  # noqa: F401  Some of its libraries write a cache when they are loaded first.
from imagen_jax.errors import UserError
from imagen_jax.main import main
from imagen_jax.text.store.cache import CacheConfig
from imagen_jax.train.config import TrainConfig
from tests.fuzz.mutate import damaged, odd_text
from tests.fuzz.running import fuzz

_ROOT = Path(__file__).resolve().parents[2]
_MODES = {
    "sample": "a_cube --checkpoint=none --output=out --seed=1,2 --size=8x8 --guidance_weight=3,1 --num_steps=4 "
    "--aug_level=0.1 --sampler=ddim --percentile=99 --tile_size=8 --mode=inpaint --image=i.png --border=1,2,3,4",
    "build_corpus": "--images=images --output=out/c --image_size=8 --min_size=4 --val_fraction=0.5 --seed=1 --name=n",
    "report": "--run_dir=none",
    "upgrade_run": "--run_dir=none --vocabulary=none",
    "checkpoints": "prune none --keep=1 --keep_every=2 --dry_run",
    "import_text": "--from=none --to=out/t --dtype=bfloat16",
    "train": "--gin_file=none.gin --gin_search_paths=a,b --gin.MODEL_DIR=out/m --dry_run",
    "cache_text": "--gin_file=none.gin --gin.STORE_DIR=out/s",
    "plan": "--gin_file=none.gin --topology=v4-8 --num_slices=1 --global_batch_size=8",
    "eval": "--gin_file=none.gin --gin.X.y=1",
}  # fmt: skip
# Sizes that are possible and would fill the machine.
_MOST_DIGITS = 4


def _words(chance: random.Random) -> list[str]:
    mode = chance.choice(list(_MODES))
    words = [mode, *_MODES[mode].split()]
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(words))
        name, equals, value = words[at].partition("=")
        kind = chance.randrange(7)
        if kind == 0:
            words[at] = name + equals + odd_text(chance)
        elif kind == 1:
            words[at] = f"{name}{equals}{value}{chance.choice((',', 'x', '=', '.', '-', 'e9'))}{odd_text(chance)}"
        elif kind == 2:
            del words[at]
        elif kind == 3:
            words.insert(at, odd_text(chance))
        elif kind == 4:
            words[at] = name
        elif kind == 5:
            words.append(chance.choice([*words, f"--gin.{odd_text(chance)}={odd_text(chance)}", "--", "-x", "--help"]))
        else:
            words[at] = f"{name}={chance.randrange(-2, 10**_MOST_DIGITS)}"
        if not words:
            break
    return words


def test_the_command_ends_with_a_word_and_a_code(pytestconfig, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (i,) * 3).save(tmp_path / "images" / f"{i}.png")
        (tmp_path / "images" / f"{i}.txt").write_text("a cube")

    def attempt(words: list[str]) -> None:
        out, err = io.StringIO(), io.StringIO()
        try:
            with redirect_stdout(out), redirect_stderr(err):
                code = main(words)
        except SystemExit as ended:
            code = ended.code
        except UserError as error:
            raise AssertionError("an error that nobody told") from error
        finally:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert code in (0, 2)
        told = err.getvalue()
        assert "Traceback" not in told
        if code:
            # argparse's usage, or progress, comes before.
            *before, last = told.splitlines()
            assert "error: " in last and last.isprintable() and told.endswith(f"{last}\n")
            assert not any("error: " in line for line in before)

    fuzz(pytestconfig, "command line", _words, attempt, writes=tmp_path)


_NAMES = ("MODEL_DIR", "BATCH_SIZE", "NUM_STEPS", "config.TrainConfig.seed", "TrainConfig.batch_size", "sr/UNet.dim",
          "UNet.dim", "unet.UNet.dim_mults", "Stage.image_size", "spec.Stage.name", "SamplingConfig.num_steps",
          "OptimizerConfig.learning_rate", "DataConfig.corpus_dir", "TEXT_EMBED_DIM", "no.such.name", "gin.REQUIRED",
          "MeshConfig.data", "T5Config.num_heads", "CacheConfig.dtype", "STORE_DIR")  # fmt: skip
_VALUES = ("1", "-1", "0", "8", "1e-4", "t/lr=1e-4", "a,b", "(1, 2)", "[1", "(8,)", "'x'", "@unet.UNet()", "@unet.UNet",
           "%BATCH_SIZE", "%NONE", "None", "True", "2024", "~/x", "@os.system('x')", "{'a': 1}", "%gin.REQUIRED",
           "@a/b/unet.UNet()", "@gin.macro()", "@spec.Stage()", "1.5", "%MODEL_DIR")  # fmt: skip


def _flags(chance: random.Random) -> list[str]:
    flags = []
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(_NAMES) if chance.random() < 0.8 else odd_text(chance)
        value = chance.choice(_VALUES) if chance.random() < 0.6 else odd_text(chance)
        if chance.random() < 0.2:
            value = damaged(chance, value.encode(errors="replace")).decode(errors="replace")
        flags.append(f"--gin.{name}={value}" if chance.random() < 0.97 else f"--gin.{name}")
    return flags


# Reading a whole run's config takes longer.
@pytest.mark.parametrize(("target", "file", "share"), [
    (CacheConfig, "tests/fuzz/cache.gin", 1.0), (TrainConfig, "tests/integration/tiny_base.gin", 0.2),
])  # fmt: skip
def test_gin_flags(pytestconfig, tmp_path, monkeypatch, target, file, share):
    monkeypatch.chdir(tmp_path)

    def attempt(flags: list[str]) -> None:
        bindings, rest = gin_config.split_gin_flags(flags)
        assert not rest
        gin_config.load_with_operative(target, [str(_ROOT / file)], bindings)

    fuzz(pytestconfig, f"gin flags of {target.__name__}", _flags, attempt, share=share)


_GIN = (_ROOT / "tests/fuzz/cache.gin").read_bytes()


def test_gin_files(pytestconfig, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.gin"
    pieces = [b"include 'a.gin'\n", b"@cache.CacheConfig()", b"import os\n", b"%STORE_DIR", b"'''", b"\\\n", b"(",
              b"from imagen_jax import nothing\n", b"from os import system\n", b"x = @os.system('x')\n", b"\xff",
              b"\0"]  # fmt: skip

    def make(chance: random.Random) -> bytes:
        content = damaged(chance, _GIN, pieces)
        if chance.random() < 0.5:
            at = chance.randrange(len(_GIN))
            content = _GIN[:at] + odd_text(chance).encode(errors="surrogatepass") + _GIN[at:]
        path.write_bytes(content)
        return content

    def attempt(content: bytes) -> None:
        gin_config.load_with_operative(CacheConfig, [str(path)])

    fuzz(pytestconfig, "gin files", make, attempt)


def test_operative_configs_read_as_data(pytestconfig):
    fuzz(
        pytestconfig,
        "gin text",
        lambda chance: damaged(chance, _GIN, [odd_text(chance).encode(errors="replace")]).decode(errors="replace"),
        gin_config.read_as_data,
    )
