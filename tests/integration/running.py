"""How tests call the console command on a tiny cascade."""

from pathlib import Path

import pytest

from imagen_jax.main import main

REPOSITORY = Path(__file__).resolve().parents[2]


def flags_of(root: Path, **macros: object) -> list[str]:
    corpus = root / "corpus"
    paths = {"CORPUS_DIR": corpus, "STORE_DIR": root / "store", "VOCABULARY_PATH": corpus / "vocabulary.model"}
    return [f"--gin.{name}={value}" for name, value in {**paths, **macros}.items()]


def train_stage(root: Path, stage: str, **macros: object) -> int:
    flags = flags_of(root, **{"MODEL_DIR": root / stage, **macros})
    return main(["train", f"--gin_file=tests/integration/tiny_{stage}.gin", *flags])


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error and "error:" in error
    return error
