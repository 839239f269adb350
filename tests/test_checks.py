"""Counts and paths: what is one, and what is said of all else."""

from pathlib import Path

import numpy as np
import pytest

from imagen_jax.checks import check_count, check_path
from imagen_jax.errors import UserError


@pytest.mark.parametrize(("value", "least"), [(1, 1), (0, 0), (2**40, 1), (-1, -1), (21, 21)])
def test_integers_from_the_least_on_pass(value, least):
    check_count("num_steps", value, least)


@pytest.mark.parametrize(
    ("value", "least"), [(0, 1), (-1, 0), (20, 21), (1.0, 1), (True, 1), (False, 0), ("3", 1), (None, 0), ([1], 1)]
)
def test_all_else_is_refused(value, least):
    with pytest.raises(UserError) as error:
        check_count("num_steps", value, least)
    assert str(error.value) == f"num_steps ({value!r}) must be an integer >= {least}"


def test_numpy_integers_are_refused_as_json_would():
    with pytest.raises(UserError, match=r"seed \(np.int64\(3\)\) must be an integer >= 0"):
        check_count("seed", np.int64(3), 0)


def test_the_hint_comes_last():
    with pytest.raises(UserError) as error:
        check_count("num_steps", 0, hint="32 to 256 is usual")
    assert str(error.value) == "num_steps (0) must be an integer >= 1; 32 to 256 is usual"


@pytest.mark.parametrize(
    "path", ["a", "é 漢/..", Path("a"), "\udcff", "a\n", "gs://bucket-a", "gs://b.c_d/x y", "s3://bucket-a/x"]
)
def test_any_name_of_a_file_or_in_a_bucket_is_a_path(path):
    check_path("the corpus directory", path)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("a\0b", "no file name can"),
        ("a\ud800", "no file name can"),
        ("", "must be the path"),
        (None, "must be the path"),
        ("az://bucket/x", "begins with az:/, and"),
        ("s3://", "must name a bucket"),
        ("gs://", "must name a bucket"),
        ("gs://b/x", "must name a bucket"),
        ("gs:/bucket/x", "must name a bucket"),
    ],
)
def test_what_is_no_path_is_refused(path, said):
    with pytest.raises(UserError, match=rf"the corpus directory .*{said}"):
        check_path("the corpus directory", path)


def test_an_address_whose_driver_is_missing_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_path("the corpus directory", "gs://bucket/x")
    with pytest.raises(UserError, match=r"\(s3://bucket/x\) needs the library s3fs; .* pip install 'imagen_jax\[s3\]'"):
        check_path("the corpus directory", "s3://bucket/x")
