"""gin files and flags: what they build, and what people read when they are wrong."""

import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import gin
import pytest

from imagen_jax import gin_config
from imagen_jax.errors import UserError

LIBRARY = """
from dataclasses import dataclass
from imagen_jax.errors import UserError

@dataclass(frozen=True, kw_only=True)
class Adam:
    rate: float = 1e-4
    betas: tuple = (0.9, 0.999)

@dataclass(frozen=True, kw_only=True)
class Run:
    directory: str
    batch_size: int = 8
    optimizer: Adam = Adam()
    names: tuple = ()

    def __post_init__(self):
        if not isinstance(self.batch_size, int):
            raise TypeError(f"batch_size ({self.batch_size!r}) must be an int")
        if self.batch_size % 8:
            raise UserError(f"batch_size ({self.batch_size}) must be divisible by 8; choose 8 or 16")
"""
BASE = """
    from __gin__ import dynamic_registration
    from gin_toy import lib as toy
    BATCH_SIZE = 16
    MODEL_DIR = %gin.REQUIRED
    toy.Run.directory = %MODEL_DIR
    toy.Run.batch_size = %BATCH_SIZE
    toy.Run.optimizer = @toy.Adam()
    toy.Run.names = ('a', %BATCH_SIZE)
    toy.Adam.rate = 0.5
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A folder with a package `gin_toy` and the file base.gin; the current directory is that folder."""
    (tmp_path / "gin_toy").mkdir()
    (tmp_path / "gin_toy" / "__init__.py").touch()
    (tmp_path / "gin_toy" / "lib.py").write_text(LIBRARY)
    write(tmp_path / "base.gin", BASE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("gin_toy", "gin_toy.lib"):
        sys.modules.pop(name, None)
    from gin_toy import lib

    return lib


def write(path: Path, text: str) -> None:
    path.write_text(textwrap.dedent(text))


def load(lib, *flags, files=("base.gin",), **options):
    bindings, rest = gin_config.split_gin_flags(flags)
    assert rest == []
    return gin_config.load(lib.Run, files, bindings, **options)


def test_files_and_flags_build_the_instance(toy):
    run = load(toy, "--gin.MODEL_DIR='runs/x'", "--gin.BATCH_SIZE=32", "--gin.toy.Adam.betas=(0.5, 0.6)")
    assert run == toy.Run(
        directory="runs/x", batch_size=32, optimizer=toy.Adam(rate=0.5, betas=(0.5, 0.6)), names=("a", 32)
    )
    assert type(run) is toy.Run


def test_class_may_be_named_without_its_module(toy):
    assert load(toy, "--gin.MODEL_DIR=x", "--gin.Run.batch_size=24").batch_size == 24
    assert load(toy, "--gin.MODEL_DIR=x", "--gin.Adam.rate=2.0").optimizer.rate == 2.0


def test_later_file_wins_and_includes_are_found_in_search_paths(toy, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "more.gin", "include 'base.gin'\nBATCH_SIZE = 40\nMODEL_DIR = 'y'\n")
    run = load(toy, files=("base.gin", "more.gin"), search_paths=["elsewhere"])
    assert (run.batch_size, run.directory) == (40, "y")
    with pytest.raises(UserError, match="more.gin"):  # The search path was lent for one load only.
        load(toy, files=("more.gin",))


def test_files_are_found_in_the_repository(toy, tmp_path, monkeypatch):
    (tmp_path / "repository" / "configs").mkdir(parents=True)
    write(tmp_path / "repository" / "configs" / "run.gin", BASE + "    include 'configs/dir.gin'\n")
    write(tmp_path / "repository" / "configs" / "dir.gin", "MODEL_DIR = 'z'\n")
    monkeypatch.setattr(gin_config, "shipped_root", lambda: str(tmp_path / "repository"))
    assert load(toy, files=("configs/run.gin",)).directory == "z"


def test_operative_config_gives_the_same_instance_again(toy, tmp_path):
    bindings = ["MODEL_DIR = 'runs/it\\'s'", "toy.Adam.betas = (0.1, 0.25)"]
    run, text = gin_config.load_with_operative(toy.Run, ["base.gin"], bindings)
    (tmp_path / "config.gin").write_text(text)
    again, text_again = gin_config.load_with_operative(toy.Run, ["config.gin"])
    assert again == run
    assert text_again == text
    assert run.optimizer.betas == (0.1, 0.25) and run.directory == "runs/it's"
    # It is a file like any other: its macros can be overridden.
    assert gin_config.load(toy.Run, ["config.gin"], ["BATCH_SIZE = 64"]).batch_size == 64


def test_loads_leave_nothing_behind(toy):
    load(toy, "--gin.MODEL_DIR=x", "--gin.BATCH_SIZE=32")
    assert gin.config_str().strip() == ""
    with pytest.raises(UserError):
        load(toy, "--gin.MODEL_DIR=x", "--gin.BATCH_SIZE=33")
    assert gin.config_str().strip() == ""
    assert load(toy, "--gin.MODEL_DIR=x").batch_size == 16
    assert toy.Run(directory="by hand").batch_size == 8


def test_only_what_the_target_uses_needs_a_value(toy):
    assert gin_config.load(toy.Adam, ["base.gin"]).rate == 0.5
    with pytest.raises(UserError, match="MODEL_DIR must be given"):
        gin_config.load(toy.Run, ["base.gin"])


def test_holes_are_seen_through_macros_and_nested_configs(toy, tmp_path):
    write(
        tmp_path / "deep.gin",
        """
        include 'base.gin'
        from __gin__ import dynamic_registration
        from gin_toy import lib as toy
        MODEL_DIR = 'x'
        INNER = %OUTER
        OUTER = (0.5, %BETA)
        BETA = %gin.REQUIRED
        toy.Adam.betas = %INNER
        """,
    )
    with pytest.raises(UserError, match="BETA must be given"):
        load(toy, files=("deep.gin",))
    assert load(toy, "--gin.BETA=0.75", files=("deep.gin",)).optimizer.betas == (0.5, 0.75)


def test_a_plan_need_not_say_where_data_lies(toy, tmp_path):
    """Paths alone may stay open: a size that was to be given is the user's to give."""

    def load_open(*bindings, file="base.gin"):
        return gin_config.load_with_operative(toy.Run, [file], bindings, open_paths="not read")[0]

    assert load_open().directory == "not read"
    assert load_open("MODEL_DIR = 'x'").directory == "x"
    write(tmp_path / "size.gin", "include 'base.gin'\nBATCH_SIZE = %gin.REQUIRED\n")
    with pytest.raises(UserError, match="BATCH_SIZE must be given"):
        load_open(file="size.gin")


def test_target_that_no_file_mentions_gets_its_defaults():
    @dataclass(frozen=True)
    class Lonely:
        depth: int = 3

    assert gin_config.load(Lonely, []) == Lonely(3)


@pytest.mark.parametrize(
    ("flags", "files", "expected"),
    [
        ([], ["base.gin"], r"MODEL_DIR must be given a value .*--gin\.MODEL_DIR=…"),
        (["--gin.MODEL_DIR=x"], ["missing.gin"], r"missing\.gin"),
        (
            ["--gin.MODEL_DIR=x", "--gin.BATCHSIZE=8"],
            ["base.gin"],
            "no macro BATCHSIZE; did you mean BATCH_SIZE?",
        ),
        (["--gin.MODEL_DIR=x", "--gin.Run.batch_siz=8"], ["base.gin"], "did you mean batch_size?"),
        (["--gin.MODEL_DIR=x", "--gin.Rum.batch_size=8"], ["base.gin"], "have Rum; did you mean Run?"),
        (["--gin.MODEL_DIR=x", "--gin.toy.Rum.batch_size=8"], ["base.gin"], "Rum"),
        (["--gin.MODEL_DIR=x", "--gin.BATCH_SIZE=12"], ["base.gin"], r"batch_size \(12\) must .*8 or 16"),
        (
            ["--gin.MODEL_DIR=x", "--gin.BATCH_SIZE=big"],
            ["base.gin"],
            r"Run\.batch_size \('big'\) must be a whole number",
        ),
        (["--gin.MODEL_DIR=x", "--gin.BATCH_SIZE=(a, b)"], ["base.gin"], "a text value needs quotes"),
        (["--gin.MODEL_DIR=~nobody-of-that-name"], ["base.gin"], r"begins with ~nobody-of-that-name, .*no such user"),
        (["--gin.MODEL_DIR=~\0"], ["base.gin"], r"is no path \(embedded null byte\); give another"),
    ],
)
def test_mistakes_are_explained(toy, flags, files, expected):
    with pytest.raises(UserError) as error:
        load(toy, *flags, files=files)
    message = str(error.value)
    assert re.fullmatch(f".*{expected}.*", message), message
    # The last flag (or the file) is the culprit and is named.
    culprit = flags[-1] if flags and files == ["base.gin"] else files[0] if flags else "MODEL_DIR"
    assert culprit.split("=")[0] in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "toy.Run.batch_size = %BATCH_SIZ",
            "Run.batch_size uses the macro %BATCH_SIZ.*did you mean BATCH_SIZE",
        ),
        ("toy.Run.batchsize = 8", r"did you mean batch_size\?.*wrong\.gin"),
        ("from gin_toy import library", "gin_toy.*wrong.gin"),
        ("toy.Run.batch_size = eight", "wrong.gin"),
        ("include 'absent.gin'", "absent.gin.*wrong.gin"),
    ],
)
def test_mistakes_in_files_name_the_file_or_binding(toy, tmp_path, line, expected):
    write(tmp_path / "wrong.gin", textwrap.dedent(BASE) + "MODEL_DIR = 'x'\n" + line + "\n")
    with pytest.raises(UserError) as error:
        load(toy, files=("wrong.gin",))
    assert re.fullmatch(f".*{expected}.*", str(error.value)), str(error.value)


def test_one_name_for_two_modules_is_refused(toy, tmp_path):
    (tmp_path / "gin_toy" / "other.py").write_text("def f(x): return x\n")
    write(tmp_path / "other.gin", "from __gin__ import dynamic_registration\nfrom gin_toy import other as toy\n")
    with pytest.raises(UserError, match="the name toy for two modules"):
        load(toy, "--gin.MODEL_DIR=x", files=("base.gin", "other.gin"))


@pytest.mark.parametrize(
    ("flag", "binding"),
    [
        ("--gin.X=runs/x", "X = 'runs/x'"),
        ("--gin.X='runs/x'", "X = 'runs/x'"),
        ("--gin.X=/data/a-b_c.d", "X = '/data/a-b_c.d'"),
        ("--gin.X=a red cube", "X = 'a red cube'"),
        ("--gin.X=1e-4", "X = 1e-4"),
        ("--gin.X=.5", "X = .5"),
        ("--gin.X=(1, 'a')", "X = (1, 'a')"),
        ("--gin.X=None", "X = None"),
        ("--gin.X=%Y", "X = %Y"),
        ("--gin.X=@lib.Adam()", "X = @lib.Adam()"),
        ("--gin.a.B.c='x=y'", "a.B.c = 'x=y'"),
        ("--gin.X=it's", """X = "it's\""""),
        ("--gin.X=a,b", "X = 'a,b'"),
        ("--gin.X=run(1)", "X = 'run(1)'"),
        ("--gin.X=3 rings", "X = '3 rings'"),
        ("--gin.X=ein Würfel", "X = 'ein Würfel'"),
        ("--gin.MODEL_DIR=漢字/مرحبا", "MODEL_DIR = '漢字/مرحبا'"),
        ('--gin.MODEL_DIR=it\'s "x" = y', """MODEL_DIR = 'it\\'s "x" = y'"""),
        ("--gin.MODEL_DIR=t/lr=1e-4", "MODEL_DIR = 't/lr=1e-4'"),
        ("--gin.MODEL_DIR=2024-01-01/run", "MODEL_DIR = '2024-01-01/run'"),
        ("--gin.MODEL_DIR=2024", "MODEL_DIR = '2024'"),
        ("--gin.MODEL_DIR=[a]/run", "MODEL_DIR = '[a]/run'"),
        ("--gin.TrainConfig.model_dir='a b'", "TrainConfig.model_dir = 'a b'"),
        ("--gin.STORE_DIR=None", "STORE_DIR = None"),
        ("--gin.STORE_DIR=%CORPUS_DIR", "STORE_DIR = %CORPUS_DIR"),
    ],
)
def test_flags_become_bindings(flag, binding):
    assert gin_config.split_gin_flags(["train", flag, "--dry_run"]) == ([binding], ["train", "--dry_run"])


def test_a_path_may_begin_with_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert gin_config.split_gin_flags(["--gin.MODEL_DIR=~/x"])[0] == ["MODEL_DIR = '/home/someone/x'"]
    assert gin_config.split_gin_flags(["--gin.CAPTION=~/x"])[0] == ["CAPTION = '~/x'"]


def test_flags_that_would_be_misread_are_refused():
    with pytest.raises(UserError, match="--gin.X=VALUE, in one word"):
        gin_config.split_gin_flags(["--gin.X", "3"])
    for empty in ("--gin.MODEL_DIR=", "--gin.MODEL_DIR=''", "--gin.MODEL_DIR=  "):
        with pytest.raises(UserError, match="--gin.MODEL_DIR= is empty"):
            gin_config.split_gin_flags([empty])
    with pytest.raises(UserError, match="write True"):
        gin_config.split_gin_flags(["--gin.X=true"])
