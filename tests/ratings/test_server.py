"""The server, by real sockets: what it takes and refuses, and that nothing acknowledged is lost or doubled."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import pytest

from imagen_jax.errors import UserError
from imagen_jax.main import main
from imagen_jax.ratings.log import RatingsLog
from imagen_jax.ratings.study import RATINGS_FILE, read_study, session
from tests.ratings.studies import serving


def asked(address, method, path, body=None, headers=None):
    """Status, headers and content of one request."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def post(address, rating, **headers):
    body = rating if isinstance(rating, bytes) else json.dumps(rating).encode()
    status, _, content = asked(address, "POST", "/ratings", body, {"Content-Type": "application/json"} | headers)
    return status, json.loads(content)


def ratings_of(study, rater, answer="left"):
    """All that a rater would send."""
    return [
        {
            "study": study.id,
            "rater": rater,
            "item": turn.item.name,
            "question": question,
            "answer": answer,
            "left": turn.left,
        }
        for turn in session(study, rater)
        for question in turn.item.questions
    ]


def lines(folder):
    return [json.loads(line) for line in (folder / RATINGS_FILE).read_text().splitlines()]


def test_raters_at_once_lose_nothing_and_double_nothing(study):
    found, problems = read_study(study), []

    def rate(rater, address):
        for rating in ratings_of(found, rater):
            for _ in range(2):  # Sent again, as after a lost connection.
                status, _ = post(address, rating)
                problems.extend([status] if status != 200 else [])

    with serving(study) as address:
        # Two browsers of one rater too.
        threads = [threading.Thread(target=rate, args=(f"r{number // 2}", address)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems
    wanted = [rating for number in range(4) for rating in ratings_of(found, f"r{number}")]
    assert sorted(map(json.dumps, lines(study))) == sorted(json.dumps(one) for one in wanted)


def test_a_second_answer_is_refused_and_the_same_is_known(study):
    rating = ratings_of(read_study(study), "a")[0]
    with serving(study) as address:
        assert post(address, rating) == (200, {"new": True})
        assert post(address, rating) == (200, {"new": False})
        status, answer = post(address, rating | {"answer": "right"})
        assert status == 409 and "first answer stays" in answer["error"]
    with serving(study) as address:  # It knows them again.
        assert post(address, rating | {"answer": "right"})[0] == 409
        status, _, content = asked(address, "GET", "/session?rater=a")
        assert json.loads(content)["ratings"] == [
            {name: rating[name] for name in ("item", "question", "answer", "left")}
        ]
        assert json.loads(asked(address, "GET", "/session?rater=b")[2]) == {"ratings": []}
    assert len(lines(study)) == 1


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"item": "i99999"}, 400),
        ({"item": ["i00000"]}, 400),
        ({"item": "<script>alert(1)</script>"}, 400),
        ({"rater": "<script>alert(1)</script>"}, 400),
        ({"rater": " a"}, 400),
        ({"rater": "\ud800"}, 400),
        ({"question": "photorealism"}, 400),
        ({"question": {}}, 400),
        ({"answer": "first"}, 400),
        ({"answer": None}, 400),
        ({"left": 7}, 400),
        ({"left": None}, 400),
        ({"left": True}, 400),
        ({"study": "0"}, 400),
        ({"more": 1}, 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 4000, 400),
        (b"null", 400),
        (b"", 400),
        (b" " * 4097, 413),
    ],
)
def test_what_is_no_rating_is_refused_in_one_line(study, change, status):
    rating = ratings_of(read_study(study), "a")[0]
    with serving(study) as address:
        got, answer = post(address, change if isinstance(change, bytes) else rating | change)
        assert got == status and answer["error"] and "\n" not in answer["error"]
        assert "<script>" not in answer["error"] or json.dumps(answer["error"])
        assert post(address, rating)[0] == 200
    assert len(lines(study)) == 1


def test_the_side_of_another_rater_is_refused(study):
    found = read_study(study)
    rating = ratings_of(found, "a")[0]
    with serving(study) as address:
        assert post(address, rating | {"left": 1 - rating["left"]})[0] == 400


def test_requests_that_are_not_the_page_s_are_refused(study):
    rating = json.dumps(ratings_of(read_study(study), "a")[0]).encode()
    kind = {"Content-Type": "application/json"}
    with serving(study) as address:
        assert asked(address, "POST", "/ratings", rating, {"Content-Type": "text/plain"})[0] == 415
        assert asked(address, "POST", "/ratings", rating, kind | {"Origin": "http://elsewhere.example"})[0] == 403
        assert asked(address, "POST", "/other", rating, kind)[0] == 404
        assert asked(address, "POST", "/ratings", iter([rating]), kind)[0] == 411  # In chunks.
        assert asked(address, "PUT", "/ratings", rating, kind)[0] == 501
        assert asked(address, "GET", "/session?rater=%3Cb%3E")[0] == 400
        assert asked(address, "POST", "/ratings", rating, kind | {"Origin": address})[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/key.json", "/ratings.jsonl", "/images/../../key.json", "/images/%2e%2e/%2e%2e/key.json", "/../key.json",
        "/images/..%2f..%2fkey.json", "/images/", "//etc/passwd", "/images//etc/passwd", "/study.json",
        "/images/x.png%00",
    ],
)  # fmt: skip
def test_nothing_but_the_page_and_its_images_is_served(study, path):
    with serving(study) as address:
        assert asked(address, "GET", path)[0] == 404


def test_the_page_and_images_come_with_a_strict_policy(study):
    name = read_study(study).items[0].sets[0][0]
    with serving(study) as address:
        status, headers, content = asked(address, "GET", "/")
        assert status == 200 and b"<!doctype html>" in content
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        status, headers, content = asked(address, "GET", f"/images/{name}")
        assert status == 200 and content == (study / "site/images" / name).read_bytes()


def started(study):
    """A server of its own, and its address."""
    command = [sys.executable, "-m", "imagen_jax.main", "serve_study", f"--study={study}", "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = None
    while found is None:
        line = process.stdout.readline()
        assert line, "the server has ended"
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
    return process, found.group()


def test_a_killed_server_has_all_that_it_acknowledged(study):
    found, acknowledged = read_study(study), []

    def rate(rater, address):
        for rating in ratings_of(found, rater):
            try:
                if post(address, rating)[0] == 200:
                    acknowledged.append(rating)
            except (OSError, http.client.HTTPException):
                return

    process, address = started(study)
    threads = [threading.Thread(target=rate, args=(f"r{number}", address)) for number in range(4)]
    for thread in threads:
        thread.start()
    while len(acknowledged) < 10:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    for thread in threads:
        thread.join()
    process.wait()
    whole = (study / RATINGS_FILE).read_bytes()
    (study / RATINGS_FILE).write_bytes(whole + b'{"study": "')  # A line half way to the disk.
    process, address = started(study)
    try:
        assert (study / RATINGS_FILE).read_bytes() == whole
        assert all(one in lines(study) for one in acknowledged)
        # One process at a time.
        assert main(["serve_study", f"--study={study}", "--port=0"]) == 2
    finally:
        process.terminate()
        assert process.wait(20) == 143


def test_a_damaged_line_is_named(study):
    log = study / RATINGS_FILE
    log.write_bytes(b'{"study": 1}\n')
    with pytest.raises(UserError, match=r"ratings\.jsonl, line 1"):
        RatingsLog(read_study(study), log)


def test_a_full_disk_takes_nothing_half(study, monkeypatch):
    found = read_study(study)
    first, second = (json.dumps(one).encode() for one in ratings_of(found, "a")[:2])
    with RatingsLog(found, study / RATINGS_FILE) as log:
        log.append(first)
        before = (study / RATINGS_FILE).read_bytes()
        with monkeypatch.context() as full:
            write = os.write
            full.setattr(os, "write", lambda file, data: write(file, data[:9]))
            with pytest.raises(OSError, match="full"):
                log.append(second)
        assert (study / RATINGS_FILE).read_bytes() == before and len(log) == 1
        assert log.append(second) and len(log) == 2
    assert len(lines(study)) == 2


def test_an_address_in_use_and_a_bucket_are_refused(study, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve_study", f"--study={study}", f"--port={taken.getsockname()[1]}"]) == 2
        assert "cannot be had" in capsys.readouterr().err
    assert main(["serve_study", f"--study={study}", "--port=99999"]) == 2
    assert main(["serve_study", "--study=gs://bucket-a/study"]) == 2
    assert "bucket" in capsys.readouterr().err
