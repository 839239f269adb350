"""Files of prompt suites, and the names that their prompts make."""

import json
import os
import random
from pathlib import Path

import pytest

from imagen_jax.evals.suites.layouts import LAYOUTS
from tests.fuzz.mutate import damaged, json_file, odd_text
from tests.fuzz.running import fuzz

_WHOLE = {
    "drawbench": 'Prompts,Category\nA red car.,Colors\n"A ""b"", c",Text\né,é\n',
    "parti": 'Prompt\tCategory\tChallenge\tNote\n"G" é\tArts\tBasic\t\nx\ty\tz\tn\n',
    "compbench": "a red car and a blue bird\na small é\n",
}
_OBJECTS = {
    "geneval": {
        "tag": "position",
        "include": [
            {"class": "a", "count": 1, "color": "red"},
            {"class": "b", "count": 2, "position": ["left of", 0]},
        ],
        "exclude": [{"class": "a", "count": 2}],
        "prompt": "a photo of é",
    },
    "geneval2": {
        "prompt": "two é",
        "atom_count": 2,
        "vqa_list": [["How many?", "two"], ["Any?", "Yes"]],
        "skills": ["count", "object"],
    },
}


def _content(chance: random.Random, kind: str) -> bytes:
    if kind in _OBJECTS:
        lines = [json.dumps(_OBJECTS[kind]).encode() for _ in range(3)]
        lines[chance.randrange(3)] = json_file(chance, _OBJECTS[kind])
        return b"\n".join(lines)
    whole = _WHOLE[kind]
    if chance.random() < 0.4:
        return whole.replace("é", odd_text(chance)).encode(errors="surrogatepass")
    return damaged(chance, whole.encode(), [b'"', b",", b"\t", b"\n", b"\r", b"\0", b"/", "é".encode("latin-1")])


@pytest.mark.parametrize("kind", [*_WHOLE, *_OBJECTS])
def test_suites(pytestconfig, tmp_path, kind):
    path = tmp_path / "suite"
    layout = LAYOUTS[kind]

    def write(chance: random.Random) -> bytes:
        path.write_bytes(content := _content(chance, kind))
        return content

    def use(content: bytes) -> None:
        rows = layout.read(str(path))
        assert rows
        for places in layout.places(rows, layout.num_images):
            for place in places:
                _check_inside(tmp_path, place)

    fuzz(pytestconfig, f"suite {kind}", write, use)


def test_folders_of_prompts(pytestconfig, tmp_path):
    folder = tmp_path / "dpg"
    folder.mkdir()
    (folder / "0.txt").write_text("a prompt")

    def write(chance: random.Random) -> bytes:
        content = damaged(chance, "a long prompt\né".encode(), ["\ufeff漢".encode(), "é".encode("utf-16"), b"\0"])
        (folder / "1.txt").write_bytes(content)
        return content

    def use(content: bytes) -> None:
        rows = LAYOUTS["dpg"].read(str(folder))
        assert [row.name for row in rows] == ["0", "1"]
        for row, places in zip(rows, LAYOUTS["dpg"].places(rows, 4), strict=True):
            for place in (*places, LAYOUTS["dpg"].grid(row, 0)):
                _check_inside(folder, place)

    fuzz(pytestconfig, "suite dpg", write, use)


def _check_inside(folder: Path, place: str) -> None:
    """Every name can be a file's, and none leads out of the folder."""
    path = os.path.normpath(folder / place)
    assert path.startswith(f"{folder}{os.sep}") and path == os.path.join(folder, place)
    assert len(os.path.basename(path).encode()) <= 255
