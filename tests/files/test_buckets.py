"""Files in buckets of both kinds: what is written is what is read, and what others wrote is seen at once."""

import subprocess
import sys

import pytest

from imagen_jax.files import (
    as_path,
    fetch_files,
    files_under,
    local_folder,
    make_dirs,
    read_files,
    remove_files,
    remove_tree,
    send_files,
    sha256_of_file,
    size_of,
    write_bytes,
)
from imagen_jax.files.ranges import read_ranges


@pytest.fixture(params=["gs", "s3"])
def place(request):
    """A folder in a bucket."""
    request.getfixturevalue({"gs": "bucket", "s3": "s3_bucket"}[request.param])
    return f"{request.param}://bucket-a/folder"


@pytest.mark.parametrize("content", [b"", b"\n", b"a line\n", b"two\r\n\r\n", b"\0\n\xff--\n"])
def test_an_object_holds_the_bytes_that_were_written(place, content):
    write_bytes(f"{place}/x", content)
    assert as_path(f"{place}/x").read_bytes() == content
    assert size_of(f"{place}/x") == len(content)


def test_files_are_listed_read_and_removed(place):
    for name in ("b", "a/c d", "a/e+f"):
        write_bytes(f"{place}/{name}", name.encode())
    assert files_under(place) == {"a/c d": 5, "a/e+f": 5, "b": 1}
    assert read_files([f"{place}/b", f"{place}/a/c d"]) == {f"{place}/b": b"b", f"{place}/a/c d": b"a/c d"}
    assert read_ranges([f"{place}/b", f"{place}/a/c d", f"{place}/none"], [(0, 1), (2, 5), (0, 1)]) == [
        b"b",
        b"c d",
        None,
    ]
    remove_files(place, ["b", "none"])
    assert files_under(place) == {"a/c d": 5, "a/e+f": 5}
    remove_tree(place)
    assert files_under(place) == {} and not as_path(place).exists()


def test_what_another_process_does_is_seen_at_once(place):
    write_bytes(f"{place}/mine", b"1")
    assert files_under(place) == {"mine": 1} and size_of(f"{place}/theirs") is None
    assert [path.name for path in as_path(place).iterdir()] == ["mine"]
    work = (
        "import sys; from imagen_jax.files import remove_files, write_bytes; place = sys.argv[1]; "
        "write_bytes(f'{place}/theirs', b'22'); remove_files(place, ['mine'])"
    )
    subprocess.run([sys.executable, "-c", work, place], check=True)
    assert files_under(place) == {"theirs": 2} and size_of(f"{place}/theirs") == 2
    assert [path.name for path in as_path(place).iterdir()] == ["theirs"]
    assert not as_path(f"{place}/mine").exists()


def test_folders_are_sent_and_fetched(place, tmp_path):
    (tmp_path / "here" / "in").mkdir(parents=True)
    (tmp_path / "here" / "in" / "x").write_bytes(b"xx\n")
    (tmp_path / "here" / "y").write_bytes(b"")
    digests = {name: sha256_of_file(tmp_path / "here" / name) for name in ("in/x", "y")}
    assert send_files(tmp_path / "here", place) == {"in/x": (3, digests["in/x"]), "y": (0, digests["y"])}
    assert fetch_files(place, ["in/x", "y"], tmp_path / "back") == digests
    assert (tmp_path / "back" / "in" / "x").read_bytes() == b"xx\n"
    assert files_under(local_folder(place, ["in/x"])) == {"in/x": 3}
    with pytest.raises(FileNotFoundError):
        fetch_files(place, ["none"], tmp_path / "back")


def test_a_bucket_that_does_not_exist_is_not_made(place):
    absent = place.replace("bucket-a", "no-such-bucket")
    with pytest.raises(FileNotFoundError, match="bucket .*://no-such-bucket does not exist"):
        make_dirs(absent)
    with pytest.raises(FileNotFoundError):
        write_bytes(f"{absent}/x", b"")
