"""The audit log: whole lines from many threads, what they hold, disks that fail."""

import datetime
import hashlib
import json
import os
import threading

import pytest

from imagen_jax.errors import UserError
from imagen_jax.safety.audit import AuditLog
from imagen_jax.safety.guard import Guard
from imagen_jax.safety.prompt_filter import Match, PromptFilter

NO = Match(category="fruit", entry="pear")


def test_threads_of_two_logs_of_one_file_append_whole_lines(tmp_path):
    path = str(tmp_path / "log.jsonl")
    logs = [AuditLog(path=path, prompts="text") for _ in range(2)]

    def run(number: int) -> None:
        for place in range(50):
            logs[number % 2].append("é\n" * 500, seed=number * 50 + place, images=1, match=None)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open(path) as file:
        found = [json.loads(line) for line in file]
    assert sorted(one["seed"] for one in found) == list(range(400))
    assert {one["prompt"] for one in found} == {"é\n" * 500}


def test_a_line_tells_who_was_refused_and_why(tmp_path):
    path = str(tmp_path / "log.jsonl")
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=1)
    AuditLog(path=path).append("a pear", 7, 2, NO)
    AuditLog(path=path).append("a plum", 8, 1, None)
    AuditLog(path=path, prompts="text").append("a pear", 9, 1, NO)
    with open(path) as file:
        found = [json.loads(line) for line in file]
    for one in found:
        moment = datetime.datetime.fromisoformat(one.pop("time"))
        assert before <= moment <= datetime.datetime.now(datetime.UTC)
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in ("a pear", "a plum")]
    assert found == [
        {"prompt_sha256": digests[0], "seed": 7, "images": 2, "verdict": "refused", "category": "fruit"},
        {"prompt_sha256": digests[1], "seed": 8, "images": 1, "verdict": "allowed"},
        {"prompt": "a pear", "seed": 9, "images": 1, "verdict": "refused", "category": "fruit", "entry": "pear"},
    ]
    assert os.stat(path).st_mode & 0o077 == 0


def test_after_half_a_line_comes_a_whole_one_and_a_moved_log_begins_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    log = AuditLog(path=str(path))
    path.write_bytes(b'{"time": "2026')
    log.append("a", 1, 1, None)
    first, second = path.read_text().splitlines()
    assert first == '{"time": "2026' and json.loads(second)["seed"] == 1
    path.rename(tmp_path / "old.jsonl")
    log.append("a", 2, 1, None)
    assert json.loads(path.read_text())["seed"] == 2


def test_what_cannot_be_noted_fails(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        AuditLog(path=str(tmp_path / "none" / "log.jsonl"))
    with pytest.raises(UserError, match="must be digest or text"):
        AuditLog(path=str(tmp_path / "log.jsonl"), prompts="all")
    log = AuditLog(path=str(tmp_path / "log.jsonl"))
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(OSError):
        Guard(audit=log).admit("a", 1, 1)


def test_a_guard_has_the_parts_that_it_is_given(tmp_path):
    path = tmp_path / "log.jsonl"
    fruit = PromptFilter({"fruit": ["pear"]})
    assert Guard().admit("a pear", 1, 1) is None
    assert Guard(prompt_filter=fruit).admit("a pear", 1, 1) == NO
    assert Guard(prompt_filter=fruit, audit=AuditLog(path=str(path))).admit("a pear", 1, 1) == NO
    assert json.loads(path.read_text())["verdict"] == "refused"
