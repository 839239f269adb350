"""Pictures that look alike are written once, what is excluded is not written, and the counts tell."""

import functools
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.builder import BuildConfig, build_corpus
from imagen_jax.data.duplicates import Screen, Screened, caption_mark, difference_hash, picture_mark
from imagen_jax.data.exclusion import excluded
from imagen_jax.data.raw import PictureForm, RawExample, Source, prepare, screened
from imagen_jax.data.records import Corpus
from imagen_jax.errors import UserError
from imagen_jax.main import main


def _scene(seed: int, size: int = 96) -> Image.Image:
    """A picture of soft blotches, in which neighbouring areas differ."""
    levels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((size, size), Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _mark(image: Image.Image) -> str:
    return prepare(
        RawExample(key="k", image=_encoded(image), caption="c"), PictureForm(image_size=32, min_size=1)
    ).picture_mark


def test_the_bits_are_comparisons_of_neighbouring_areas():
    areas = np.random.default_rng(0).integers(0, 256, (8, 9), dtype=np.uint8)
    expected = int("".join("01"[int(left < right)] for row in areas for left, right in zip(row, row[1:])), 2)  # noqa: B905
    assert difference_hash(Image.fromarray(areas)) == expected
    # Areas of 4 x 5 pixels: their means are what is compared.
    large = np.kron(areas.astype(np.float64), np.ones((4, 5)))
    large[::2] += 1  # rows above and below the mean, by as much
    large[1::2] -= 1
    assert difference_hash(Image.fromarray(np.clip(large, 0, 255).astype(np.uint8))) == expected
    ramp = np.tile(np.arange(9, dtype=np.uint8), (8, 1))
    assert difference_hash(Image.fromarray(ramp)) == 2**64 - 1
    assert difference_hash(Image.fromarray(ramp[:, ::-1])) == 0


def _alike(one: Image.Image, other: Image.Image) -> bool:
    screen = Screened(Screen(pictures=frozenset({_mark(one)})))
    return screen.problem("k", _mark(other), "") is not None


def test_other_sizes_and_compression_look_alike_and_other_pictures_do_not():
    scenes = [_scene(seed) for seed in range(20)]
    assert all(len(_mark(scene)) == 16 for scene in scenes)
    for scene in scenes:
        for side in (48, 192):
            assert _alike(scene, scene.resize((side, side), Image.Resampling.BICUBIC))
        assert _alike(scene, Image.open(io.BytesIO(_encoded(scene, "JPEG", quality=50))))
    for one, other in itertools.permutations(scenes, 2):
        assert not _alike(one, other)
    assert not _alike(scenes[0], scenes[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def test_marks_are_alike_up_to_three_bits_wherever_these_are():
    bits = np.random.default_rng(1)
    for _ in range(200):
        mark = int(bits.integers(0, 2**63))
        places = bits.permutation(64)[:4]
        near, far = (mark ^ sum(1 << int(place) for place in places[:number]) for number in (3, 4))
        screen = Screened(Screen(pictures=frozenset({f"{mark:016x}"})))
        assert screen.problem("k", f"{near:016x}", "") and not screen.problem("k", f"{far:016x}", "")


def test_pictures_without_differences_are_alike_only_if_their_pixels_are():
    grounds = [Image.new("RGB", (96, 96), colour) for colour in ("white", "red", "navy")]
    dots = [Image.new("RGB", (96, 96), "white") for _ in range(2)]
    for place, dot in enumerate(dots):
        dot.putpixel((40 + place, 40), (0, 0, 0))
    marks = [picture_mark(image) for image in (*grounds, *dots)]
    assert len(set(marks)) == 5 and all(len(mark) == 64 for mark in marks)
    assert picture_mark(grounds[0].copy()) == marks[0]


def test_captions_of_equal_words_have_one_mark():
    assert caption_mark("A red  cube.") == caption_mark("a RED cube") != caption_mark("a red cubes")
    assert caption_mark("…!") == caption_mark("") == ""
    assert Screened(Screen(captions=frozenset({caption_mark("x")}))).problem("k", "p", caption_mark("…")) is None


def _source(examples: list[RawExample]) -> Source:
    # Several parts: what is alike may stand in different ones.
    return Source(parts=[functools.partial(iter, [one]) for one in examples], num_examples=0, settings={"kind": "test"})


def _example(key: str, seed: int, caption: str = "", **fields) -> RawExample:
    return RawExample(key=key, image=np.asarray(_scene(seed)), caption=caption or f"scene {key}", **fields)


CONFIG = BuildConfig(name="mine", image_size=32)


def test_the_first_of_pictures_that_look_alike_is_kept_with_all_its_captions(tmp_path):
    examples = [
        _example("a", 1), _example("a#1", 1), _example("b", 2), _example("c", 1, split="val"), _example("a#2", 1),
        _example("b", 3), _example("d", 3), RawExample(key="e", image=b"no image", caption="broken"),
    ]  # fmt: skip
    source = screened(_source(examples), Screen(dedupe=True))
    report = build_corpus(source, tmp_path / "one", CONFIG)
    assert [one.key for one in Corpus(tmp_path / "one").records("train")] == [b"a", b"a#1", b"b", b"a#2", b"d"]
    assert report.num_dropped == {"near-duplicate": 1} and report.num_rejected == 3
    refused = [json.loads(line) for line in (tmp_path / "one" / "rejects.jsonl").read_text().splitlines()]
    # A picture that was itself refused, such as b's second, is none that a later one could be like.
    assert [(one["source"], one["reason"]) for one in refused[:2]] == [
        ("c", "looks like a"), ("b", "another example has the same key")
    ]  # fmt: skip
    build_corpus(source, tmp_path / "two", CONFIG, num_workers=2)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    with pytest.raises(UserError, match=r"\(different: source\.dedupe\)"):
        build_corpus(_source(examples), tmp_path / "one", CONFIG)


def _folder(folder: Path, scenes: dict[str, int]) -> Path:
    folder.mkdir()
    for name, seed in scenes.items():
        _scene(seed).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"Scene {name}!")
    return folder


def test_captions_and_pictures_of_an_evaluation_are_kept_out(tmp_path, capsys):
    pictures = _folder(tmp_path / "pictures", {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 5})
    # One corpus, one list of which a picture is missing, one text.
    build_corpus(_source([_example("z", 1, "another caption")]), tmp_path / "corpus", CONFIG)
    (tmp_path / "list.csv").write_text("image,caption\nabsent.png,scene b\npictures/c.png,yet another\n")
    (tmp_path / "prompts.txt").write_text("something\nSCENE  D\n")
    words = ["build_corpus", f"--images={pictures}", f"--output={tmp_path / 'out'}", "--image_size=32", "--dedupe"]
    words += [f"--exclude={tmp_path / name}" for name in ("corpus", "list.csv", "prompts.txt")]
    assert main(words) == 0
    assert [one.key for one in Corpus(tmp_path / "out").records("train")] == [b"e.png"]
    told = capsys.readouterr().out
    assert "2 by excluded caption, 2 by excluded picture, 1 by near-duplicate" in told
    settings = Corpus(tmp_path / "out").manifest["settings"]["source"]
    assert settings["excluded"] | {"digest": ""} == {"captions": 5, "pictures": 2, "digest": ""}
    assert main(words) == 0 and "already built" in capsys.readouterr().out
    assert main(words[:-1]) == 2
    assert "(different: source.excluded)" in capsys.readouterr().err
    assert main([*words, f"--exclude={tmp_path / 'absent.txt'}"]) == 2
    assert "excluded captions" in capsys.readouterr().err
    assert main([*words, f"--exclude={tmp_path / 'absent'}"]) == 2


def test_pictures_are_compared_at_the_size_of_the_corpus(tmp_path):
    build_corpus(_source([_example("z", 1)]), tmp_path / "corpus", BuildConfig(name="large", image_size=96))
    assert _mark(_scene(1)) in excluded([str(tmp_path / "corpus")], 32).pictures
