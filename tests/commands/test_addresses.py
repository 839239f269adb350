"""Places in flags and gin files: paths of this machine, and where a bucket may stand."""

import pytest

from imagen_jax.main import build_parser, main

PATHS = [f"--gin.{name}=nowhere" for name in ("CORPUS_DIR", "STORE_DIR", "MODEL_DIR", "VOCABULARY_PATH")]


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "--checkpoint={}", "--output=y", "a cube"],
        ["sample", "--checkpoint=x", "--output={}", "a cube"],
        ["sample", "--checkpoint=x", "--output=y", "--prompts_file={}"],
        ["report", "--run_dir={}"],
        ["model_card", "{}"],
        ["model_card", "x", "--output={}"],
        ["model_card", "x", "--corpus={}"],
        ["build_corpus", "--images={}", "--output=y", "--image_size=8"],
        ["build_corpus", "--images=x", "--output={}", "--image_size=8"],
        ["export", "--from={}", "--to=y"],
        ["export", "--from=x", "--to={}"],
        ["upgrade_run", "--run_dir={}"],
        ["import_text", "--from=x", "--to={}"],
        ["train", "--gin_file={}"],
        ["train", "--gin_file=configs/experiments/demo_base.gin", *PATHS, "--gin.MODEL_DIR={}"],
        ["train", "--gin_file=configs/experiments/demo_base.gin", *PATHS, "--gin.CORPUS_DIR={}"],
        ["train", "--gin_file=configs/experiments/demo_base.gin", *PATHS, "--gin.STORE_DIR={}"],
        ["train", "--gin_file=configs/experiments/demo_base.gin", *PATHS, "--gin.VOCABULARY_PATH={}"],
        ["train", "--gin_file=configs/experiments/demo_base.gin", *PATHS, "--gin.TrainConfig.resume={}"],
        ["cache_text", "--gin_file=configs/experiments/demo_base.gin", *PATHS, "--gin.STORE_DIR={}"],
        ["eval", "--gin_file=configs/experiments/demo_eval.gin", "--gin.RUN_DIR={}"],
    ],
    ids=lambda words: " ".join(words[:1] + words[-1:]),
)
def test_addresses_of_other_kinds_are_refused_at_every_door(words, tmp_path, monkeypatch, capsys):
    """http://host/x would be taken for a folder named "http:"."""
    monkeypatch.chdir(tmp_path)
    try:
        code = main([word.format("http://host/x") for word in words])
    except SystemExit as exit:
        code = exit.code
    told = capsys.readouterr().err
    assert code == 2 and "begins with http:/, and only paths of this machine" in told and "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_a_text_encoder_may_lie_in_a_bucket():
    parse = build_parser().parse_args
    for scheme in ("gs", "s3"):
        address = f"{scheme}://bucket/t5"
        assert parse(["import_text", f"--from={address}", "--to=y"]).source == address
    assert (
        parse(["sample", "--checkpoint=x", "--output=y", "--text_encoder=gs://bucket/t5"]).text_encoder
        == "gs://bucket/t5"
    )
    with pytest.raises(SystemExit):
        parse(["import_text", "--from=az://bucket/t5", "--to=y"])


def test_a_flag_may_begin_with_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    args = build_parser().parse_args(["report", "--run_dir=~/runs/demo"])
    assert args.run_dir == "/home/someone/runs/demo"


def test_the_home_directory_of_nobody_is_no_folder(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["report", "--run_dir=~nobody-of-that-name/x"])
    told = capsys.readouterr().err
    assert "(~nobody-of-that-name/x) begins with ~nobody-of-that-name, and there is no such user" in told
    assert "write ./~nobody-of-that-name for" in told
    assert build_parser().parse_args(["report", "--run_dir=./~x"]).run_dir == "./~x"
