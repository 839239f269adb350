"""Files are whole or absent, whatever strikes while they are written."""

import hashlib
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from imagen_jax import files
from tests.full_disk import files_up_to

WRITERS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: files.write_bytes(path, b"new" * 1000),
    "bytes, synced": lambda path: files.write_bytes(path, b"new" * 1000, sync=True),
    "text": lambda path: files.write_text(path, "neu¿" * 1000),
    "json": lambda path: files.write_json(path, ["new"] * 1000),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, name):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with files_up_to(100), pytest.raises(OSError, match="large"):
        WRITERS[name](path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    WRITERS[name](path)
    assert path.stat().st_size > 2000


def test_a_full_disk_leaves_no_file_where_there_was_none(tmp_path):
    with files_up_to(100), pytest.raises(OSError, match="large"):
        files.write_bytes(tmp_path / "file", b"new" * 1000)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_block_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), files.whole_file(path) as file:
        file.write(b"half")
        file.flush()
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"new": object()})
    assert files.read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_kill_between_write_and_rename_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = """
        import os, signal, sys
        from imagen_jax import files
        with files.whole_file(sys.argv[1], sync=True) as file:
            file.write(b"new")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    files.write_bytes(path, b"newest")
    assert path.read_bytes() == b"newest"


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "file"
    with files.whole_file(path) as first, files.whole_file(path) as second:
        first.write(b"first, longer")
        second.write(b"second")
    assert path.read_bytes() == b"first, longer"  # the outer block ends last
    assert os.listdir(tmp_path) == ["file"]


def test_the_file_has_the_rights_of_any_new_file(tmp_path):
    files.write_bytes(tmp_path / "whole", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "whole").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_json_is_written_as_told(tmp_path):
    path = tmp_path / "file.json"
    value = {"ä": [1, 2.5, None], "b": {}}
    files.write_json(path, value)
    assert path.read_bytes() == b'{\n "\\u00e4": [\n  1,\n  2.5,\n  null\n ],\n "b": {}\n}'
    assert files.read_json(path) == value
    files.write_json(path, value, indent=None, end="\n")
    assert path.read_bytes() == b'{"\\u00e4": [1, 2.5, null], "b": {}}\n'


@pytest.mark.parametrize("content", [b"{", b"", b'"\xff"'])
def test_what_is_not_json_raises_value_error(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ValueError):
        files.read_json(tmp_path / "file.json")


def test_digest_of_a_file_longer_than_a_buffer(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert files.sha256_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2's example
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_of_file(str(tmp_path / "abc")) == expected


def test_a_moved_file_replaces_the_old_one(tmp_path):
    (tmp_path / "beside").write_bytes(b"new")
    (tmp_path / "file").write_bytes(b"old")
    files.move_file(tmp_path / "beside", tmp_path / "file", sync=True)
    files.sync_directory(tmp_path)
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"new"


def test_sync_waits_for_the_disk_before_the_rename(tmp_path, monkeypatch):
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
    files.write_bytes(tmp_path / "file", b"new", sync=True)
    assert calls == ["fsync", "replace"]
    files.write_bytes(tmp_path / "file", b"newer")
    assert calls == ["fsync", "replace", "replace"]


def test_importing_it_loads_neither_jax_nor_tensorflow():
    program = (
        "import sys, imagen_jax.files, imagen_jax.checks; print({'jax', 'tensorflow', 'numpy'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "set()"


@pytest.mark.parametrize("content", [b"", b"\r", b"a\n", b"a\r\n", b"a\r", b"\n\r", bytes(range(256)) * 50 + b"\r"])
def test_a_file_in_a_bucket_has_all_its_bytes(bucket, tmp_path, content):
    path = "gs://bucket-a/file"
    files.write_bytes(path, content)
    assert bucket.content("file") == files.as_path(path).read_bytes() == content
    (tmp_path / "beside").write_bytes(content)
    files.move_file(tmp_path / "beside", path)
    assert bucket.content("file") == content
