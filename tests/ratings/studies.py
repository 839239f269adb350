"""Folders of small pictures, and servers of studies of them."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from imagen_jax.ratings.log import RatingsLog
from imagen_jax.ratings.server import RatingServer
from imagen_jax.ratings.study import RATINGS_FILE, read_study

CATEGORIES = ("Colors", "Counting")


def draw(folder: Path, seed: int, num_prompts: int = 6, num_samples: int = 2, size: int = 16) -> Path:
    """Writes pictures of noise, whose prompts are the same in every such folder."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(seed), []
    for prompt in range(num_prompts):
        for sample in range(num_samples):
            name = f"{prompt:05d}_{sample}.png"
            about = PngImagePlugin.PngInfo()
            about.add_text("model", folder.name)
            pixels = rng.integers(256, size=(size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name, pnginfo=about)
            text = f"prompt {prompt} <b>&amp;" + (" of a man" if prompt % 2 else "")
            rows.append({"name": name, "prompt": text, "category": CATEGORIES[prompt % 2]})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of a study, in a thread."""
    study = read_study(folder)
    with RatingsLog(study, folder / RATINGS_FILE) as log, RatingServer(("127.0.0.1", 0), study, folder, log) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
