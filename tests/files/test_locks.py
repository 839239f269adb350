"""Locks of one process at a time, on this machine and in a bucket."""

import json
import subprocess
import sys
import threading
import time

import pytest

from imagen_jax.errors import UserError
from imagen_jax.files import Lock, LockLostError, Presence, alone_in, as_path, files_under, locks, write_bytes

ELSEWHERE = {"host": "far", "machine": "another", "process": 7, "nonce": "0"}


@pytest.fixture(params=["folder", "gs", "s3"])
def place(request, tmp_path):
    """A folder of this machine, or one of a bucket."""
    if request.param == "folder":
        return str(tmp_path)
    request.getfixturevalue({"gs": "bucket", "s3": "s3_bucket"}[request.param])
    return f"{request.param}://bucket-a/run"


@pytest.fixture(params=["gs", "s3"])
def cloud(request):
    """A bucket's server, and the address of an object in it."""
    return request.getfixturevalue(
        {"gs": "bucket", "s3": "s3_bucket"}[request.param]
    ), f"{request.param}://bucket-a/lock"


def test_one_holds_it_and_gives_it_back(place):
    first, second = Lock(f"{place}/lock"), Lock(f"{place}/lock")
    assert first.acquire()
    assert not second.acquire()
    first.check()
    assert "process" in second.owner() and "host" in second.owner()
    first.release()
    assert second.acquire()
    second.release()


def test_of_many_at_once_one_has_it(place):
    held, start = [], threading.Barrier(8)

    def work() -> None:
        lock = Lock(f"{place}/lock")
        start.wait()
        if lock.acquire():
            held.append(lock)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    held[0].release()


def test_a_file_that_goes_with_its_owner_locks_one_at_a_time(tmp_path):
    """Its owner removes it while others have it open already."""
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(150):
            lock = Lock(tmp_path / "lock")
            if lock.acquire():
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1
                lock.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and not list(tmp_path.iterdir())


def test_one_process_works_in_a_folder_and_an_empty_one_does_not_stay(place, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_S", 0.4)
    folder = f"{place}/out"
    with alone_in(folder, "lock", "--output=out", "drawn into") as check:
        check()
        told = "--output=out is being drawn into by process [0-9]+ on host .*; wait until that has ended, or choose"
        with pytest.raises(UserError, match=told), alone_in(folder, "lock", "--output=out", "drawn into"):
            pass
        with alone_in(folder, "other lock", "out", "read"):
            pass
    assert not as_path(folder).exists()
    with alone_in(folder, "lock", "out", "drawn into"):
        write_bytes(f"{folder}/picture", b"x")
    assert list(files_under(folder)) == ["picture"]


def test_a_killed_process_of_this_machine_leaves_it_free(place):
    held = (
        "import os, sys; from imagen_jax.files import Lock; lock = Lock(sys.argv[1]); assert lock.acquire(); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", held, f"{place}/lock"], check=False)
    lock = Lock(f"{place}/lock")
    assert lock.acquire()
    lock.release()


def test_a_lease_of_another_machine_is_taken_over_once_it_is_silent(cloud, monkeypatch):
    bucket, url = cloud
    monkeypatch.setattr(locks, "LEASE_S", 0.5)
    write_bytes(url, json.dumps(ELSEWHERE).encode())
    lock = Lock(url)
    assert not lock.acquire()
    assert lock.owner() == "process 7 on host far"
    assert lock.acquire(3.0)
    lock.release()
    assert bucket.names() == []


def test_a_lease_that_is_renewed_stays_and_who_is_in_a_hurry_does_not_wait(cloud, monkeypatch):
    _, url = cloud
    monkeypatch.setattr(locks, "LEASE_S", 0.4)
    mine, other = Lock(url), Lock(url)
    assert mine.acquire()
    assert not other.acquire(1.5)
    start = time.monotonic()
    assert not other.acquire(60.0, patient=False)
    assert time.monotonic() - start < 30
    mine.check()
    mine.release()


def test_who_lost_a_lease_is_told_and_leaves_the_new_one_alone(cloud, monkeypatch):
    bucket, url = cloud
    monkeypatch.setattr(locks, "LEASE_S", 0.4)
    lock = Lock(url)
    assert lock.acquire()
    # As if this machine had slept: another has taken it over.
    write_bytes(url, json.dumps(ELSEWHERE).encode())
    with pytest.raises(LockLostError, match="taken over by process 7 on host far"):
        for _ in range(100):
            threading.Event().wait(0.05)
            lock.check()
    lock.release()
    assert json.loads(bucket.content("lock")) == ELSEWHERE


def test_a_request_whose_answer_was_lost_is_no_other_owner(bucket):
    """The first attempt made the object, and the second is refused."""
    lost = []

    def lose_the_first(method: str, path: str) -> int | None:
        if "ifGenerationMatch=0" in path and not lost:
            lost.append(path)
            return -503
        return None

    bucket.fault = lose_the_first
    lock = Lock("gs://bucket-a/lock")
    assert lock.acquire()
    assert lost
    lock.release()


def test_presence_tells_if_others_are_there(place):
    mine, other = Presence(f"{place}/at-work"), Presence(f"{place}/at-work")
    mine.enter()
    assert mine.alone()
    other.enter()
    assert not mine.alone()
    other.leave()
    assert mine.alone()
    mine.leave()
