"""docs/caption_to_picture.py on the tiny trained cascade."""

import runpy
from pathlib import Path

import numpy as np
from PIL import Image

from imagen_jax.sampling.cascade import Cascade

SCRIPT = Path(__file__).parents[2] / "docs" / "caption_to_picture.py"


def test_shows_the_way_from_noise_to_the_picture(root, tmp_path, capsys):
    walk = runpy.run_path(str(SCRIPT))["walk"]
    rows = walk("a red cube", str(root), str(tmp_path / "steps.png"), seed=3, columns=3)
    stages = Cascade.load(str(root)).stages
    sizes = [one.stage.draw_size for one in stages]
    assert [[image.shape for image in row] for row in rows] == [[(size, size, 3)] * 3 for size in sizes]
    for row in rows:
        # Noise is cut off at both ends of the range in many pixels; each further image is another one.
        assert np.isin(row[0], (0, 255)).mean() > 0.2
        assert all((one != other).any() for one, other in zip(row, row[1:], strict=False))
    width, height = Image.open(tmp_path / "steps.png").size
    assert (width, height) == (2 + 3 * (sizes[-1] + 2), 2 + len(sizes) * (sizes[-1] + 2))
    assert "a red cube" in capsys.readouterr().out


def test_the_same_caption_and_seed_give_the_same_picture(root, tmp_path):
    walk = runpy.run_path(str(SCRIPT))["walk"]
    captions = ("a red cube", "a red cube", "a blue ring")
    first, again, other = (walk(one, str(root), str(tmp_path / "steps.png"), columns=2)[-1][-1] for one in captions)
    assert (first == again).all() and (first != other).any()
