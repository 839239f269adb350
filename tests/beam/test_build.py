"""The corpus of two Beam workers is the serial builder's, byte for byte."""

import functools
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image

# `make beam-test` installs it.
pytest.importorskip("apache_beam")

from imagen_jax.beam.build import build_corpus
from imagen_jax.data import builder
from imagen_jax.data.builder import BuildConfig
from imagen_jax.data.duplicates import Screen, caption_mark
from imagen_jax.data.filters import filtered
from imagen_jax.data.raw import RawExample, Rejection, Source, screened
from imagen_jax.data.records import Corpus
from imagen_jax.data.sources import shapes_source
from imagen_jax.main import main
from tests.beam.conftest import TWO_PROCESSES, TWO_THREADS, files


def _example(key: str, **fields) -> RawExample:
    return RawExample(key=key, image=np.full((8, 8, 3), len(key), np.uint8), **{"caption": "a b", **fields})


def _source(*parts: list) -> Source:
    settings = {"kind": "test"}
    return Source(parts=[functools.partial(iter, part) for part in parts], num_examples=0, settings=settings)


CONFIG = BuildConfig(name="tiny", image_size=8, examples_per_shard=2)


def test_bytes_are_the_serial_builders(tmp_path: Path) -> None:
    """Recurring keys in one part and in several, refused inputs, an empty part, two splits, many shards."""
    parts = [
        [_example("k1", split="val"), _example("k2", meta={"x": 1}), _example("k1", caption="later")],
        [Rejection(source="lonely.png", reason="no caption file"), _example("mute", caption=" ")],
        [],
        [_example(f"k{i}", split="val" if i % 3 == 0 else "train") for i in range(2, 14)],
    ]
    serial = builder.build_corpus(_source(*parts), tmp_path / "serial", CONFIG, extra={"note": 1})
    report = build_corpus(_source(*parts), tmp_path / "beam", CONFIG, TWO_PROCESSES, extra={"note": 1})
    assert report == serial and report.num_rejected == 4
    assert files(tmp_path / "beam") == files(tmp_path / "serial")
    refused = [json.loads(line)["source"] for line in (tmp_path / "beam" / "rejects.jsonl").read_text().splitlines()]
    assert refused == ["k1", "lonely.png", "mute", "k2"]
    Corpus(tmp_path / "beam").verify()
    assert build_corpus(_source(*parts), tmp_path / "serial", CONFIG, TWO_PROCESSES).reused


def test_originals_and_shards_of_bytes_are_the_serial_builders(tmp_path: Path) -> None:
    photo = np.asarray(Image.effect_noise((20, 30), 60))
    parts = []
    for kind in ("JPEG", "PNG"):
        buffer = io.BytesIO()
        Image.fromarray(photo).save(buffer, kind)
        parts.append([_example(f"{kind}{i}", split="vt"[i % 2] + "x", caption="c" * 50 * i) for i in range(7)])
        parts[-1] += [RawExample(key=kind, image=buffer.getvalue(), caption="c", split="vx")]
    config = BuildConfig(name="tiny", image_size=8, shard_size=700, image_format="original")
    builder.build_corpus(_source(*parts), tmp_path / "serial", config)
    build_corpus(_source(*parts), tmp_path / "beam", config, TWO_THREADS)
    assert files(tmp_path / "beam") == files(tmp_path / "serial")
    shards = Corpus(tmp_path / "beam").manifest["splits"]["vx"]["shards"]
    assert len({shard["num_examples"] for shard in shards}) > 1


def test_sizes_are_the_serial_builders(tmp_path: Path) -> None:
    shapes = [(8, 8), (20, 12), (9, 15), (10, 6), (7, 30), (8, 9), (60, 100)]
    parts = [
        [
            RawExample(key=f"{part}/{i}", image=np.full((*shape, 3), i, np.uint8), caption="c", split="vt"[i % 2])
            for i, shape in enumerate(shapes)
        ]
        for part in range(3)
    ]
    config = BuildConfig(name="tiny", image_size=8, sizes=((10, 6), (8, 8), (6, 10)), examples_per_shard=2)
    serial = builder.build_corpus(_source(*parts), tmp_path / "serial", config)
    assert build_corpus(_source(*parts), tmp_path / "beam", config, TWO_THREADS) == serial
    assert files(tmp_path / "beam") == files(tmp_path / "serial")
    assert [one.size for one in Corpus(tmp_path / "beam").sizes("v")] == [(8, 8), (6, 10)]


def test_what_is_dropped_is_what_the_serial_builder_drops(tmp_path: Path) -> None:
    """Pictures of keys of one length are alike; the first stands in another part than those that look like it."""
    parts = [
        [_example("k", meta={"n": 1}), _example("kk", meta={"n": 2})],
        [_example("j", meta={"n": 1}), _example("jjj", meta={"n": 3}), _example("jjjjj", caption="Out!")],
        [_example("k", meta={"n": 9}), _example("kkkk"), _example("kk#1", meta={"n": 1}, split="val")],
    ]
    source = filtered(_source(*parts), ["caption == 'Out!' or n < 3"])
    source = screened(source, Screen(dedupe=True, captions=frozenset({caption_mark("out")})))
    serial = builder.build_corpus(source, tmp_path / "serial", CONFIG)
    report = build_corpus(source, tmp_path / "beam", CONFIG, TWO_THREADS)
    assert report == serial and serial.num_examples == {"train": 2, "val": 1}
    assert serial.num_dropped == {
        "excluded caption": 1, "caption == 'Out!' or n < 3": 2, "near-duplicate": 1, "no n": 1
    }  # fmt: skip
    assert files(tmp_path / "beam") == files(tmp_path / "serial")


def test_tars_datasets_and_filters_by_the_script(tmp_path: Path, run_script) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 10, 3), 7, np.uint8)).save(buffer, "PNG")
    (tmp_path / "tars").mkdir()
    for number in range(2):
        with tarfile.open(tmp_path / f"tars/{number}.tar", "w") as tar:
            for name, content in (("png", buffer.getvalue()), ("txt", b"a tar"), ("json", b'{"similarity": 0.5}')):
                member = tarfile.TarInfo(f"key{number}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (tmp_path / "rows").mkdir()
    rows = [{"image": buffer.getvalue(), "text": f"row {i}", "similarity": i / 4} for i in range(5)]
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(tmp_path / "rows/data.arrow", table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "rows/state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    for place, kept in (("tars", 2), ("rows", 3)):
        flags = ["--images", str(tmp_path / place), "--image_size=8", "--filter=similarity >= 0.5"]
        assert main(["build_corpus", *flags, "--output", str(tmp_path / f"serial {place}")]) == 0
        assert run_script("beam_build.py", *flags, "--output", str(tmp_path / f"beam {place}"), *TWO_THREADS) == 0
        assert files(tmp_path / f"beam {place}") == files(tmp_path / f"serial {place}")
        assert Corpus(tmp_path / f"beam {place}").num_examples("train") == kept


def test_a_folder_by_the_script(tmp_path: Path, run_script, capsys) -> None:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for i in range(130):
        path = folder / ("more" if i % 2 else "") / f"{i}.png"
        Image.fromarray(np.full((12, 10, 3), i, np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"picture number {i}")
    (folder / "7.jpg").write_bytes(b"\xff\xd8 no more")
    (folder / "7.txt").write_text("a broken picture")
    flags = ["--images", str(folder), "--image_size=8", "--val_fraction=0.2", "--vocab_size=40"]
    assert main(["build_corpus", *flags, "--output", str(tmp_path / "serial")]) == 0
    assert run_script("beam_build.py", *flags, "--output", str(tmp_path / "beam"), *TWO_PROCESSES) == 0
    assert "rejected: 1" in capsys.readouterr().out.splitlines()[-1]
    assert files(tmp_path / "beam") == files(tmp_path / "serial")
    refused = (tmp_path / "beam" / "rejects.jsonl").read_text()
    assert '"7.jpg"' in refused and "cannot be decoded" in refused


def test_bad_input_is_told(tmp_path: Path, run_script, capsys) -> None:
    flags = ["--output", str(tmp_path / "out"), "--image_size=8"]
    assert run_script("beam_build.py", "--images", str(tmp_path / "absent"), *flags) == 2
    assert "does not exist or is not a directory" in capsys.readouterr().err
    (tmp_path / "one.png").write_bytes(b"")
    assert run_script("beam_build.py", "--images", str(tmp_path), *flags, "--overwite", "--direct_num_workers=1") == 2
    assert "nor Apache Beam knows --overwite;" in capsys.readouterr().err
    assert run_script("beam_build.py", "--images", str(tmp_path), *flags) == 2
    assert "no usable example among 1 " in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_failing_worker_leaves_an_older_corpus_whole(tmp_path: Path) -> None:
    builder.build_corpus(_source([_example("old")]), tmp_path, CONFIG)
    before = files(tmp_path)
    failing = Source(parts=[functools.partial(json.loads, "{")], num_examples=0, settings={})
    with pytest.raises(RuntimeError, match="JSONDecodeError"):
        build_corpus(failing, tmp_path, CONFIG, TWO_PROCESSES, overwrite=True)
    assert files(tmp_path) == before


def test_drawn_shapes(tmp_path: Path) -> None:
    source = shapes_source({"train": 250, "val": 20}, seed=1, image_size=16)
    config = BuildConfig(name="shapes", image_size=16, examples_per_shard=100, image_format="webp", quality=80)
    build_corpus(source, tmp_path / "beam", config, TWO_THREADS)
    builder.build_corpus(source, tmp_path / "serial", config)
    assert files(tmp_path / "beam") == files(tmp_path / "serial")
