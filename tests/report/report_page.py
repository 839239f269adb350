"""A run directory with everything a report shows, and a strict reader of the page."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.report.page import write_report
from imagen_jax.sampling.images import write_png

VOID = {"br", "hr", "img", "meta"}
ATTACK = "</title><script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """Parses a page strictly: every tag that opens closes, in order."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.source = source
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attrs)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, text: str) -> None:
        for name in set(self.open):
            self.words.setdefault(name, []).append(text)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for element, attributes in self.elements if element == name]

    def text(self, name: str) -> str:
        return " ".join(self.words.get(name, []))


def save_picture(path: Path, colour: tuple[int, int, int], side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(path)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def write_stage(folder: Path, records: int) -> None:
    folder.mkdir(parents=True)
    lines = [
        {
            "step": 10 * n,
            "loss": 1.0 / n,
            "loss_by_log_snr": {"-inf..-6": 0.5 / n, "-6..6": 1.0 / n, "6..inf": 2.0 / n},
            "grad_norm": 3.0 / n,
            "learning_rate": 2e-4,
            "images_per_s": 210.0,
            "data_s": 0.1,
            "compute_s": 0.3,
        }
        for n in range(1, records + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.gin").write_text(f"spec.Stage.name = '{folder.name}'  # <b>\n")
    write_json(folder / "versions.json", {"python": "3.11.2", "git_revision": "abc123", "jax": None})
    save_picture(folder / "samples" / "step_100.png", (1, 2, 3), 32)
    save_picture(folder / "samples" / "step_20.png", (4, 5, 6), 32)


def build_run(root: Path) -> Path:
    """Writes a whole cascade run directory."""
    # Written as the sampler does, intermediate stages included.
    for index, prompt in enumerate(("a red circle", ATTACK)):
        info = {
            "prompt": prompt,
            "index": index,
            "seed": 70 + index,
            "guidance_weight": [4.0, 2.0, 1.5],
            "aug_level": [None, 0.1, 0.1],
            "stages": ["base", "sr", "sr2"],
            "config_hash": "9f86d081884c-7d659a2feaa0-c55ad015a3bf",
        }
        for name, red, side in (("_base", 200, 16), ("_sr", 150, 32), ("", 201, 64)):
            picture = np.full((side, side, 3), (red, index, 0), np.uint8)
            write_png(str(root / f"samples/{index:05d}{name}.png"), picture, info)
    save_picture(root / "samples.png", (9, 9, 9), 128)
    write_json(
        root / "eval.json",
        {
            "guidance_weights": [1.0, 4.0, 8.0],
            "alignment": {
                # Out of order on purpose: the report sorts by weight.
                "8.0": {"single_both": 0.85, "heldout_both": 0.70, "count": 0.41},
                "1.0": {"single_both": 0.55, "heldout_both": 0.50, "count": 0.31},
                "4.0": {"single_both": 0.913, "heldout_both": 0.795, "count": None},
            },
            "best_guidance_weight": 4.0,
            "unconditional_both": 0.061,
            "chance_both": 0.042,
            "num_prompts": 1512,
        },
    )
    write_json(
        root / "samplers.json",
        {
            "guidance_weight": 2.0,
            "num_prompts": 320,
            "samplers": {
                "2M": {"calls": [4, 8], "alignment": [0.5, 0.75], "image_error": [9.25, 0.0]},
                "Heun": {"calls": [7], "alignment": [0.625], "image_error": [3.5]},
            },
        },
    )
    rules = {
        rule: {"alignment": [0.9, 0.7 - 0.1 * i], "saturated": [0.01, 0.1 * i]}
        for i, rule in enumerate(("dynamic", "static", "none"))
    }
    swept = {"guidance_weights": [1.0, 8.0], "rules": rules, "num_prompts": 320}
    write_json(root / "thresholds.json", {"stage": "base", **swept})
    save_picture(root / "eval/thresholds.png", (77, 7, 7), 64)
    write_json(root / "thresholds_sr.json", {"stage": "sr", **swept, "guidance_weights": [2.0, 20.0]})
    save_picture(root / "eval/thresholds_sr.png", (78, 8, 8), 64)
    write_stage(root / "sr", 3)
    write_stage(root / "base", 12)
    write_json(
        root / "metrics.json",
        {"seconds_total": 4000.0, "seconds": {"train_base": 3000.0, "export": None}, "device": "cpu"},
    )
    save_picture(root / "photos/original.png", (10, 20, 30), 64)
    save_picture(root / "photos/drawn.png", (11, 21, 31), 64)
    write_json(
        root / "photos.json",
        [
            {
                "caption": "waves at dusk",
                "psnr_db": 27.31,
                "colour_drift": 0.0123,
                "original": "photos/original.png",
                "drawn": "photos/drawn.png",
            }
        ],
    )
    write_json(root / "commands.json", [{"phase": "train base", "command": "imagen_jax train --gin.X='<a>'"}])
    return root


def report(run_dir: Path) -> Page:
    path = write_report(str(run_dir))
    assert path == str(run_dir / "report.html")
    return Page(Path(path).read_text("utf-8"))


def section(page: Page, anchor: str) -> Page:
    found = re.search(rf'<section id="{anchor}".*?</section>', page.source, re.DOTALL)
    assert found, f"no section {anchor}"
    return Page(found[0])


def colours(page: Page) -> list[tuple[int, ...]]:
    """The colour of each one-coloured picture on the page, in order."""
    found = []
    for attributes in page.all("img"):
        content = base64.b64decode(str(attributes["src"]).removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(content)) as image:
            pixel = image.getpixel((0, 0))
        assert isinstance(pixel, tuple)
        found.append(pixel)
    return found


def cells(page: Page) -> list[list[str]]:
    """The rows of a section's tables as text."""
    rows = re.findall(r"<tr.*?</tr>", page.source, re.DOTALL)
    return [
        [re.sub(r"<.*?>", " ", cell).strip() for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in rows
    ]
