"""Words of commands: put in, quoted through a real shell up to gin, and never secret."""

import json
import subprocess
import sys

import pytest

from imagen_jax.commands.train import COMMAND as TRAIN
from imagen_jax.errors import UserError
from imagen_jax.gin_config import load_with_operative, split_gin_flags
from launch.jobs.phases import job_name, read_phases
from launch.jobs.words import expand, refuse_secrets, shell_line

ODD = [
    "a b",
    "a=b",
    "it's",
    'say "x"',
    "$HOME `id` $(id)",
    "back\\slash",
    "*",
    "",
    "line\nbreak",
    "ünï — 漢",
    "-n",
    "#x;&|>",
]


def as_bash_reads(line):
    """The words that a program gets when bash runs a line in which `imagen_jax` begins a command."""
    show = f"{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))'"
    script = f'show() {{ {show} "$@"; }}; env() {{ show "$@"; }}; imagen_jax() {{ show "$@"; }}\n{line}'
    return json.loads(subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout)


def test_every_word_survives_the_shell():
    assert as_bash_reads(shell_line(["imagen_jax", *ODD])) == ODD
    assert as_bash_reads(shell_line(["A=x y", "imagen_jax", *ODD])) == ["A=x y", "imagen_jax", *ODD]


def test_overrides_survive_to_gin():
    """Spaces, equals signs and both kinds of quotes, from a config's field to the value that training gets."""
    place = '/runs/it\'s "mine" a=b $HOME'
    config = {"overrides": (f"MODEL_DIR={place}", "NUM_STEPS=700"), "files": ("configs/experiments/demo_base.gin",)}
    rest = " --gin.CORPUS_DIR=c --gin.STORE_DIR=s --gin.VOCABULARY_PATH=v"
    words = expand("imagen_jax train --gin_file={files} --gin.{overrides}" + rest, config)
    bindings, files = split_gin_flags(as_bash_reads(shell_line(words))[1:])
    assert files == ["--gin_file=configs/experiments/demo_base.gin"]
    run, _ = load_with_operative(TRAIN.config_class(), [files[0].split("=", 1)[1]], bindings)
    assert (run.model_dir, run.num_steps) == (place, 700)


def test_fields_are_put_in():
    fields = {"one": "a b", "many": ("x", "y z"), "none": (), "number": 3, "part": {"field": ("p",)}}
    assert expand("--a={one} --b={many} {none} --c={none} {number} --d={part[field]}", fields) == [
        "--a=a b", "--b=x", "--b=y z", "3", "--d=p",
    ]  # fmt: skip
    assert expand("FLAGS={one}", {"one": ""}) == ["FLAGS="]
    with pytest.raises(UserError, match=r"config's one is empty.*--config\.one=VALUE"):
        expand("--a={one}", {"one": ""})
    with pytest.raises(UserError, match="no setting two"):
        expand("--a={two}", {"one": ""})


@pytest.mark.parametrize(
    "word",
    [
        "WANDB_API_KEY=0123456789",
        "HF_TOKEN=abc",
        "--gin.password=abc",
        "--note=ghp_0123456789abcdefghij",
        "hf_0123456789abcdefghij",
    ],
)
def test_secrets_are_refused_and_not_shown(word):
    with pytest.raises(UserError, match="looks like a secret") as error:
        refuse_secrets(["imagen_jax", word])
    assert "abc" not in str(error.value) and "012345" not in str(error.value)


def test_what_only_sounds_secret_is_not():
    refuse_secrets(["--gin.NUM_TOKENS=128", "--gin.MAX_TOKEN_LENGTH=3", "--gin.token=", "--key_file=a", "tokens"])


def test_phases_wait_for_those_before_them():
    phases = (("a", "one"), ("b", "two && A=b three"), ("c", "four", "", "m"), ("d", "five", "a c", "m"))
    read = read_phases({"phases": phases})
    assert [phase.after for phase in read] == [(), ("a",), (), ("a", "c")]
    assert read[1].line() == "two && env A=b three"


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((("a", "x"), ("a", "y")), "two phases have the name 'a'"),
        ((("a", "x", "b", ""), ("b", "y")), "'a' comes after 'b', which is no phase before it"),
        ((("a", "HF_TOKEN=abc x"),), "HF_TOKEN looks like a secret"),
    ],
)
def test_phases_that_cannot_be_are_refused(phases, message):
    with pytest.raises(UserError, match=message):
        read_phases({"phases": phases})


def test_names_are_ones_that_clouds_take():
    (phase,) = read_phases({"phases": (("train_base", "x"),)})
    assert job_name({"name": "mine"}, phase) == "mine-train-base"
    for name in ("Mine", "mine too", "", "a" * 40, "1st", "a/b"):
        with pytest.raises(UserError, match="lower-case letters"):
            job_name({"name": name}, phase)
