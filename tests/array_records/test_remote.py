"""Records read from a bucket, one request each, and what stays on this machine."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.array_records import RecordFiles, Wanted, write_index
from imagen_jax.errors import UserError
from imagen_jax.files import write_bytes
from tests.array_records.test_index import write

URL = "gs://bucket-a/records"


def records_in_bucket(tmp_path: Path, count: int = 20, size: int = 5000) -> list[bytes]:
    """Random records, also as a file with its index at URL."""
    records = [np.random.default_rng(number).bytes(size + number) for number in range(count)]
    write(tmp_path / "records", records)
    write_index(tmp_path / "records", count)
    for name in ("records", "records.index"):
        write_bytes(f"gs://bucket-a/{name}", (tmp_path / name).read_bytes())
    return records


def read(files: RecordFiles, *indices: int) -> list[bytes]:
    return files.read([Wanted(URL, 20, indices)])[0]


def downloads(bucket) -> int:
    return sum("alt=media" in path for _, path in bucket.requests)


def in_threads(work):
    """Calls `work` with 0 to 3, at once."""
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_each_record_costs_one_request_and_the_second_time_none(bucket, tmp_path):
    records = records_in_bucket(tmp_path)
    files = RecordFiles("rebuild it")
    read(files, 0)  # Also the index.
    bucket.requests.clear()
    assert read(files, 7, 3, 3, 19) == [records[7], records[3], records[3], records[19]]
    assert downloads(bucket) == 4
    bucket.requests.clear()
    assert read(files, 3, 19, 7) == [records[3], records[19], records[7]]
    assert bucket.requests == []
    # Another process of this machine finds them too.
    assert read(RecordFiles("rebuild it"), 19) == [records[19]]
    assert downloads(bucket) == 0


def test_threads_read_at_once(bucket, tmp_path):
    records = records_in_bucket(tmp_path)
    files, wrong = RecordFiles("rebuild it"), []

    def work(seed: int) -> None:
        for index in np.random.default_rng(seed).integers(0, 20, 30).tolist():
            if read(files, index) != [records[index]]:
                wrong.append(index)

    in_threads(work)
    assert not wrong


def test_a_flipped_byte_is_refused_by_name(bucket, tmp_path):
    records = records_in_bucket(tmp_path)
    content = bytearray(bucket.content("records"))
    content[content.find(records[4]) + 100] ^= 1
    bucket.replace("records", bytes(content))
    files = RecordFiles("rebuild it")
    with pytest.raises(UserError, match=f"shard {URL} is damaged .record 4.; rebuild it"):
        read(files, 3, 4)
    assert read(files, 3, 5) == [records[3], records[5]]


def test_a_copy_that_was_damaged_on_this_machine_is_fetched_again(bucket, tmp_path):
    records = records_in_bucket(tmp_path)
    read(RecordFiles("rebuild it"), *range(20))
    (copy,) = (path for path in (tmp_path / "copies").rglob("records"))
    content = bytearray(copy.read_bytes())
    content[content.find(records[4]) + 100] ^= 1
    copy.write_bytes(bytes(content))
    assert read(RecordFiles("rebuild it"), 4) == [records[4]]


def test_copies_stay_within_the_room_given(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEN_JAX_CACHE_GB", "0.0001")
    monkeypatch.setattr("imagen_jax.files.copies._AHEAD", 10_000)
    records = records_in_bucket(tmp_path)
    files = RecordFiles("rebuild it")
    for _ in range(3):
        for index in range(20):
            assert read(files, index) == [records[index]]
            taken = sum(path.stat().st_blocks * 512 for path in (tmp_path / "copies").rglob("*") if path.is_file())
            assert taken <= 130_000


def test_programs_at_once_may_take_each_others_room(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEN_JAX_CACHE_GB", "0.00004")
    monkeypatch.setattr("imagen_jax.files.copies._AHEAD", 10_000)
    records, told = records_in_bucket(tmp_path), []

    def work(seed: int) -> None:
        files = RecordFiles("rebuild it")  # Each its own, as programs of one machine have.
        try:
            for index in np.random.default_rng(seed).integers(0, 20, 40).tolist():
                assert read(files, index) == [records[index]]
        except BaseException as error:  # noqa: BLE001
            told.append(error)

    in_threads(work)
    assert not told


@pytest.mark.parametrize("name", ["records", "records.index"])
def test_an_object_that_vanishes_is_named(bucket, tmp_path, name):
    records_in_bucket(tmp_path)
    files = RecordFiles("rebuild it")
    if name == "records":
        read(files, 0)
    bucket.remove(name)
    with pytest.raises(UserError, match=f"shard {URL}.* missing; rebuild it"):
        read(files, 1)


def test_an_index_that_is_cut_short_is_named(bucket, tmp_path):
    records_in_bucket(tmp_path)
    bucket.replace("records.index", bucket.content("records.index")[:-5])
    with pytest.raises(UserError, match=f"{URL}.index is 315 bytes long; expected 320; rebuild it"):
        read(RecordFiles("rebuild it"), 1)


@pytest.mark.slow
def test_a_thousand_files_are_opened_as_they_are_read_with_256_handles(bucket, tmp_path):
    """In a process of its own: the server's handles are this one's."""
    records_in_bucket(tmp_path, 1, 10)
    for name in ("", ".index"):
        content = bucket.content(f"records{name}")
        for number in range(1000):
            bucket.add(f"many/{number:04d}{name}", content)
    work = """if True:
        from imagen_jax.array_records import RecordFiles, Wanted
        from tests.few_handles import free_handles

        files = RecordFiles("rebuild it")
        wanted = [Wanted(f"gs://bucket-a/many/{number:04d}", 1, [0]) for number in range(1000)]
        with free_handles(256):
            files.read(wanted[:3])
            print(len(files.read(wanted)), len({one for (one,) in files.read(wanted)}))
    """
    done = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("1000 1\n", 0), done.stderr
    paths = [path for _, path in bucket.requests]
    third = next(place for place, path in enumerate(paths) if "many%2F0002?alt=media" in path)
    assert third < next(place for place, path in enumerate(paths) if "many%2F0003" in path)


def test_failures_that_pass_lose_nothing(bucket, tmp_path):
    records = records_in_bucket(tmp_path)
    seen: dict[str, int] = {}

    def fails_at_first(method: str, path: str) -> int | None:
        name = path.partition("?")[0]
        seen[name] = seen.get(name, 0) + 1
        return (429, 500, 503)[seen[name]] if seen[name] < 3 else None

    bucket.fault = fails_at_first
    assert read(RecordFiles("rebuild it"), *range(4)) == records[:4]


def test_a_file_that_another_process_wrote_anew_is_read_as_it_is_now(bucket, tmp_path):
    """Its index and what was read of it are of the version before."""
    records_in_bucket(tmp_path)
    files = RecordFiles("rebuild it")
    read(files, 3)
    records = records_in_bucket(tmp_path, size=3000)
    assert read(files, 3, 4) == [records[3], records[4]]
