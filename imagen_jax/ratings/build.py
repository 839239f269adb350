"""Two folders of images of the same prompts → the folder of a study."""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError, listed
from imagen_jax.files import StrPath, alone_in, as_path, is_file_name, make_dirs, write_bytes, write_json, write_text
from imagen_jax.image_files import ImageError, centre_square, decode_image
from imagen_jax.ratings.page import rating_page
from imagen_jax.ratings.people import people_category
from imagen_jax.ratings.study import IMAGES, KEY_FILE, SITE, STUDY_FILE, Item, Study

PROMPTS_FILE = "prompts.jsonl"
_LOCK = ".building.lock"
# The paper's numbers: samples a side on DrawBench, pairs of COCO.
NUM_SAMPLES, NUM_PAIRS = 8, 200


class Prompt(NamedTuple):
    """Text and category that images were drawn from."""

    text: str
    category: str


def build_study(
    folders: Sequence[StrPath],
    output: StrPath,
    real: bool = False,
    num_prompts: int | None = None,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> Study:
    """Writes the folder of a study; its key.json comes last.

    Images become PNG under numbers, so that neither name nor file tells the model.

    Args:
      folders: two, with prompts.jsonl beside the images; a model is called by its folder's name.
      output: the folder to make.
      real: the second holds photographs: the study of COCO. They are cut to the generated images' size.
      num_prompts: prompts chosen at random; None: all, with `real` at most 200.
      num_samples: images a side, chosen at random; fewer where there are fewer. With `real` one.
      seed: of what is chosen, and of raters' order and sides.

    Raises:
      UserError: a folder or image cannot be used, no prompt is in both, or `output` holds a study already.
    """
    check_count("--num_samples", num_samples)
    check_count("--seed", seed, least=0)
    names = [os.path.basename(os.fspath(one).rstrip("/")) for one in folders]
    if names[0] == names[1]:
        raise UserError(f"both folders are named {names[0]}, by which models are told apart; rename one")
    found = [_read_prompts(one) for one in folders]
    shared = [prompt for prompt in found[0] if prompt in found[1]]
    lost = [repr(one.text) for one in (*found[0], *found[1]) if one not in found[0] or one not in found[1]]
    if not shared:
        raise UserError(f"{folders[0]} and {folders[1]} have no prompt in common; draw both from the same prompts")
    if lost:
        print(f"{len(lost)} prompts are in one folder alone and left out: {listed(lost)}")
    rng = np.random.default_rng(seed)
    if num_prompts is not None:
        check_count("--num_prompts", num_prompts, most=len(shared))
    wanted = num_prompts or (min(NUM_PAIRS, len(shared)) if real else len(shared))
    chosen = [shared[number] for number in sorted(rng.permutation(len(shared))[:wanted])]
    with alone_in(output, _LOCK, f"--output={os.fspath(output)}", "built"):
        if (as_path(output) / KEY_FILE).exists():
            raise UserError(f"--output={os.fspath(output)} holds a study already; choose another, or remove it")
        writer = _Writer(output, rng)
        for prompt in chosen:
            num = 1 if real else min(num_samples, len(found[0][prompt]), len(found[1][prompt]))
            paths = [[one[prompt][number] for number in rng.permutation(len(one[prompt]))[:num]] for one in found]
            if real:
                writer.add_real(prompt, paths[0][0], paths[1][0])
            else:
                writer.add_models(prompt, paths)
        return writer.finish(names, seed, real)


class _Writer:
    """Images, items and their key, as they come."""

    def __init__(self, output: StrPath, rng: np.random.Generator):
        self._output, self._rng = as_path(output), rng
        self._site = self._output / SITE
        make_dirs(self._site / IMAGES)
        self._items: list[Item] = []
        self._key: dict[str, Any] = {}
        self._used: set[str] = set()

    def add_models(self, prompt: Prompt, paths: list[list[str]]) -> None:
        sides = [tuple(self._image(decoded(path)) for path in of_one) for of_one in paths]
        self._add(0, prompt, prompt.category, sides, ("fidelity", "alignment"), prompt.text)

    def add_real(self, prompt: Prompt, generated: str, real: str) -> None:
        image, photo = decoded(generated), decoded(real)
        category = people_category(prompt.text)
        if photo.size != image.size:
            photo = centre_square(photo, min(image.size))
            image = centre_square(image, min(image.size))
        sides = [(self._image(image),), (self._image(photo),)]
        self._add(0, prompt, category, sides, ("photorealism",), None)
        for model, side in enumerate(sides):
            self._add(1, prompt, category, [side], ("caption",), prompt.text, [model])

    def _add(
        self,
        part: int,
        prompt: Prompt,
        category: str,
        sides: Sequence[tuple[str, ...]],
        questions: tuple[str, ...],
        shown: str | None,
        models: list[int] | None = None,
    ) -> None:
        name = f"i{len(self._items):05d}"
        order = [int(one) for one in self._rng.permutation(len(sides))]
        self._items.append(Item(name, part, shown, tuple(sides[one] for one in order), questions))
        self._key[name] = {"prompt": prompt.text, "category": category, "models": models or order}

    def _image(self, image: Image.Image) -> str:
        # A random name: counted ones would tell the model by their order.
        name = f"{self._rng.integers(1 << 48):012x}.png"
        while name in self._used:
            name = f"{self._rng.integers(1 << 48):012x}.png"
        self._used.add(name)
        content = io.BytesIO()
        # Through an array: text and profiles of the file would tell where it is from.
        Image.fromarray(np.asarray(image)).save(content, "PNG")
        write_bytes(self._site / IMAGES / name, content.getvalue())
        return name

    def finish(self, names: list[str], seed: int, real: bool) -> Study:
        unnamed = Study("", seed, tuple(self._items))
        content = json.dumps([unnamed.plain(), names, self._key], sort_keys=True)
        study = Study(hashlib.sha256(content.encode()).hexdigest()[:16], seed, unnamed.items)
        write_text(self._site / "index.html", rating_page(study))
        write_json(self._site / STUDY_FILE, study.plain(), end="\n")
        key = {"study": study.id, "names": names, "real": real, "items": self._key}
        write_json(self._output / KEY_FILE, key, end="\n")
        return study


def decoded(path: str) -> Image.Image:
    """An image of a study, upright RGB.

    Raises:
      UserError: it cannot be decoded.
    """
    try:
        return decode_image(path)
    except ImageError as error:
        raise UserError(f"the image {path} cannot be used ({error}); replace it, or take its line out") from error


def _read_prompts(folder: StrPath) -> dict[Prompt, list[str]]:
    """Prompts of a folder with the paths of their images, in the order of its prompts.jsonl."""
    place = as_path(folder)
    path = place / PROMPTS_FILE
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{os.fspath(path)} cannot be read ({error}); expected a line an image: "
            '{"name": "00000_0.png", "prompt": "…", "category": "…"}'
        ) from error
    found: dict[Prompt, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt = Prompt(row["prompt"], row.get("category", ""))
            name = row["name"]
            sound = isinstance(prompt.text, str) and isinstance(prompt.category, str) and is_file_name(name)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise UserError(
                f"{os.fspath(path)}, line {number}, is no object of name (of an image in the same folder), prompt and "
                "category, all text; correct the line"
            )
        found.setdefault(prompt, []).append(os.fspath(place / name))
    return found
