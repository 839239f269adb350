"""Tars of img2dataset become examples; what is wrong with one is named, and the rest of it is kept."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.raw import RawExample, Rejection, Source
from imagen_jax.data.records import Corpus
from imagen_jax.data.webdataset import holds_tars, tar_source
from imagen_jax.errors import UserError
from imagen_jax.files import as_path, write_bytes
from imagen_jax.image_files import decode_image
from imagen_jax.main import main


def _picture(level: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level,) * 3).save(buffer, kind)
    return buffer.getvalue()


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _members(key: str, level: int = 0, **facts) -> list[tuple[str, bytes]]:
    return [
        (f"{key}.png", _picture(level)),
        (f"{key}.txt", f"caption of {key}".encode()),
        (f"{key}.json", json.dumps({"key": key, "caption": "of the json", **facts}).encode()),
    ]


def _all(source: Source) -> list[RawExample | Rejection]:
    return [one for part in source.parts for one in part()]


def _told(source: Source) -> list[tuple[str, str]]:
    """(key, caption) of what is accepted, (where, reason) of what is not."""
    return [(one.source, one.reason) if isinstance(one, Rejection) else (one.key, one.caption) for one in _all(source)]


def test_members_of_a_key_are_one_example_wherever_they_stand(tmp_path):
    files = [
        ("000.jpg", _picture(50, "JPEG")),
        ("./001.webp", _picture(60, "WEBP")),
        ("000.txt", "é".encode()),
        ("001.json", json.dumps({"caption": "from the json", "similarity": 0.3, "NSFW": "UNLIKELY"}).encode()),
        ("001.mask.png", b"another part of the example, which is not its picture"),
        ("__MACOSX/._000.jpg", b"hidden"),
        ("README", b"no kind"),
    ]
    (tmp_path / "00000.tar").write_bytes(_tar(files))
    (tmp_path / "00000_stats.json").write_text("{}")
    (tmp_path / "00000.parquet").write_bytes(b"")
    found = _all(tar_source(tmp_path))
    assert [(one.key, one.caption, one.meta) for one in found] == [
        ("000", "é", None),
        ("001", "from the json", {"similarity": 0.3, "nsfw": "UNLIKELY"}),
    ]
    assert [decode_image(one.image).getpixel((0, 0))[0] for one in found] == pytest.approx([50, 60], abs=2)


def _two_tars(folder) -> list[int]:
    """Writes ten examples, of grey levels that tell their order, into two tars; returns the levels."""
    write_bytes(folder / "00000.tar", _tar([one for i in range(6) for one in _members(f"{i:05d}", 10 * i)]))
    write_bytes(folder / "00001.tar", _tar([one for i in range(6, 10) for one in _members(f"{i:05d}", 10 * i)]))
    return [10 * i for i in range(10)]


def _build(place, out: Path, *flags: str) -> dict[str, bytes]:
    words = ["build_corpus", f"--images={place}", f"--output={out}", "--image_size=8", "--val_fraction=0.3", *flags]
    assert main(words) == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_bucket_and_workers_give_the_bytes_of_a_folder(bucket, tmp_path):
    (tmp_path / "tars").mkdir()
    levels = _two_tars(tmp_path / "tars")
    _two_tars(as_path("gs://bucket-a/laion"))
    here = _build(tmp_path / "tars", tmp_path / "here")
    assert here == _build("gs://bucket-a/laion", tmp_path / "folder in the bucket", "--num_workers=2")
    assert here == _build("gs://bucket-a/laion/{00000..00001}.tar", tmp_path / "braces in the bucket")
    assert here == _build(tmp_path / "tars" / "0*.tar", tmp_path / "pattern")
    corpus = Corpus(tmp_path / "here")
    found = {
        record.key: decode_image(record.image).getpixel((0, 0))[0]
        for split in corpus.splits
        for record in corpus.records(split)
    }
    assert found == {f"{i:05d}".encode(): level for i, level in enumerate(levels)}
    assert set(corpus.splits) == {"train", "val"}


def test_other_content_is_another_corpus(tmp_path):
    (tmp_path / "a.tar").write_bytes(_tar(_members("0")))
    before = tar_source(tmp_path).settings
    assert before == tar_source(tmp_path / "a.tar").settings == tar_source(tmp_path).settings
    (tmp_path / "a.tar").write_bytes(_tar(_members("0", 1)))
    assert tar_source(tmp_path).settings != before


@pytest.mark.parametrize("place", ["header of the last", "picture of the last", "between two members", "end mark"])
def test_a_tar_that_is_cut_keeps_its_whole_examples(tmp_path, place):
    whole = _tar([*_members("0"), *_members("1"), *_members("2")])
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        last, end = tar.getmember("2.png"), tar.getmembers()[-1]
    cut = {
        "header of the last": last.offset + 100,
        "picture of the last": last.offset_data + 3,
        "between two members": last.offset,
        "end mark": end.offset_data + 512,
    }[place]
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    found = _told(tar_source(tmp_path))
    kept = ["0", "1", "2"] if place == "end mark" else ["0", "1"]
    assert [key for key, caption in found if caption == f"caption of {key}"] == kept
    told = [reason for where, reason in found if where == "a.tar"]
    assert len(told) == 1 and "the tar is cut or damaged at byte" in told[0]
    if place == "picture of the last":
        (lost,) = (reason for where, reason in found if where == "a.tar: 2")
        assert lost.startswith("no caption")


def test_a_damaged_header_in_the_middle_is_no_silent_end(tmp_path):
    whole = bytearray(_tar([*_members("0"), *_members("1")]))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        whole[tar.getmember("1.png").offset + 150] ^= 0x55  # in its checksum
    (tmp_path / "a.tar").write_bytes(whole)
    found = _told(tar_source(tmp_path))
    assert [one[0] for one in found] == ["a.tar", "0"] and "damaged at byte 3072" in found[0][1]


@pytest.mark.parametrize("content", [b"", b"no tar", bytes(100)], ids=["empty", "text", "zeros"])
def test_what_is_no_tar_is_counted(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(_tar(_members("0")))
    (tmp_path / "b.tar").write_bytes(content)
    found = _told(tar_source(tmp_path))
    assert found[0] == ("0", "caption of 0")
    assert found[1][0] == "b.tar" and "not a tar file that can be read" in found[1][1] and len(found) == 2


def test_members_that_are_no_plain_files_of_the_tar_are_counted(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(_picture())
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("../x.png", "/abs/x.png", "a/../../x.png"):
            info = tarfile.TarInfo(name)
            tar.addfile(info, io.BytesIO())
        for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("f.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(outside)
            tar.addfile(info)
        for name, content in _members("0"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    found = _told(tar_source(tmp_path))
    assert found == [
        ("a.tar: ../x.png", "the name leads out of the tar"),
        ("a.tar: /abs/x.png", "the name leads out of the tar"),
        ("a.tar: a/../../x.png", "the name leads out of the tar"),
        ("a.tar: l.png", "a link, not a file"),
        ("a.tar: h.png", "a link, not a file"),
        ("a.tar: f.png", "not a plain file"),
        ("0", "caption of 0"),
    ]


def test_examples_that_cannot_be_used_are_counted_with_their_reason(tmp_path):
    picture = _picture()
    tar = _tar(
        [
            ("only_text.txt", b"x"),
            ("only_image.png", picture),
            ("latin.png", picture), ("latin.txt", b"\xe9t\xe9"),
            ("list.png", picture), ("list.txt", b"x"), ("list.json", b"[1]"),
            ("broken.png", picture), ("broken.txt", b"x"), ("broken.json", b"{"),
            ("deep.png", picture), ("deep.txt", b"x"), ("deep.json", b"[" * 100_000),
            ("number.png", picture), ("number.json", b'{"caption": 3}'),
            *_members("good", similarity=float("nan"), width=9),
        ]
    )  # fmt: skip
    (tmp_path / "a.tar").write_bytes(tar)
    found = _all(tar_source(tmp_path))
    reasons = {one.source.removeprefix("a.tar: "): one.reason for one in found if isinstance(one, Rejection)}
    assert reasons.keys() == {"only_text", "only_image", "latin", "list", "broken", "deep", "number"}
    assert reasons["only_text"] == "no image (jpg, jpeg, png, webp), only txt"
    assert reasons["only_image"].startswith("no caption")
    assert "not UTF-8" in reasons["latin"] and reasons["list"] == "its .json is not a JSON object"
    assert "not JSON" in reasons["broken"] and "not JSON" in reasons["deep"]
    # JSON has no NaN, and Python writes it all the same.
    assert [one.meta for one in found if isinstance(one, RawExample)] == [{"width": 9}]


def test_recurring_keys_are_counted_within_a_tar_and_across(tmp_path):
    (tmp_path / "a.tar").write_bytes(_tar([*_members("0", 10), *_members("0", 20)]))
    (tmp_path / "b.tar").write_bytes(_tar([*_members("0", 30), *_members("1", 40)]))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.tar").write_bytes(_tar(_members("0", 50)))
    report = build_corpus(tar_source(tmp_path), tmp_path / "corpus", BuildConfig(name="mine", image_size=8))
    assert (report.num_examples, report.num_rejected) == ({"train": 3}, 4)
    records = Corpus(tmp_path / "corpus").records("train")
    assert {one.key: decode_image(one.image).getpixel((0, 0))[0] for one in records} == {
        b"0": 10, b"1": 40, b"other/0": 50
    }  # fmt: skip
    refused = [json.loads(line) for line in (tmp_path / "corpus" / "rejects.jsonl").read_text().splitlines()]
    assert [one["source"] for one in refused] == ["a.tar: 0.png", "a.tar: 0.txt", "a.tar: 0.json", "0"]


def test_names_that_are_no_text_are_counted(tmp_path):
    whole = _tar([*_members("abc"), *_members("good")])
    (tmp_path / "a.tar").write_bytes(_with_name(whole, "abc.png", b"\xff\xfe\xfd.png"))
    report = build_corpus(tar_source(tmp_path), tmp_path / "corpus", BuildConfig(name="mine", image_size=8))
    # The picture has lost its caption, and the caption its picture.
    assert (report.num_examples, report.num_rejected) == ({"train": 1}, 2)
    assert "\\\\udcff" in (tmp_path / "corpus" / "rejects.jsonl").read_text()


def _with_name(tar: bytes, name: str, other: bytes) -> bytes:
    """A tar in which the header of a member bears another name of the same length."""
    changed = bytearray(tar)
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        offset = opened.getmember(name).offset
    changed[offset : offset + len(other)] = other
    changed[offset + 148 : offset + 156] = b" " * 8
    changed[offset + 148 : offset + 156] = b"%06o\0 " % sum(changed[offset : offset + 512])
    return bytes(changed)


def test_patterns_name_the_tars_that_a_shell_would(tmp_path):
    for number in (8, 9, 10, 11):
        (tmp_path / f"{number:03d}.tar").write_bytes(_tar(_members(f"k{number}")))

    def keys(pattern: str) -> list[str]:
        return [key for key, _ in _told(tar_source(f"{tmp_path}/{pattern}"))]

    assert keys("{008..010}.tar") == ["k8", "k9", "k10"]
    assert keys("{008,011}.tar") == ["k8", "k11"]
    assert keys("0[01]{8,9,0}.tar") == ["k8", "k9", "k10"]
    assert keys("*.tar") == ["k8", "k9", "k10", "k11"]
    found = _told(tar_source(f"{tmp_path}/{{010..012}}.tar"))
    assert [one[0] for one in found] == ["k10", "k11", "012.tar"]
    assert found[-1][1] == "not a tar file that can be read (no such file)"


def test_places_without_tars_are_refused(tmp_path, capsys):
    with pytest.raises(UserError, match=r"tar file '.*absent\.tar' does not exist; check the path"):
        tar_source(tmp_path / "absent.tar")
    with pytest.raises(UserError, match="does not exist; .* put a pattern in quotes"):
        tar_source(f"{tmp_path}/{{0..3}}.tar")
    with pytest.raises(UserError, match="stands for more than 1000000 files"):
        tar_source(f"{tmp_path}/{{0..99999999999}}.tar")
    with pytest.raises(UserError, match=r"val_fraction \(1.5\)"):
        tar_source(tmp_path, val_fraction=1.5)
    (tmp_path / "a.tar").write_bytes(_tar(_members("0")))
    (tmp_path / "b.png").write_bytes(_picture())
    assert main(["build_corpus", f"--images={tmp_path}", f"--output={tmp_path / 'out'}", "--image_size=8"]) == 2
    assert "holds tar files, such as a.tar, and images, such as b.png; for the tars give" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "captions.csv").write_text("image,caption\nb.png,x\n")
    assert not holds_tars(tmp_path)
