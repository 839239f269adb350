"""Files of a run that say what was trained: stages by their newest checkpoints, corpora with their data cards."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagen_jax.checkpoints import folders
from imagen_jax.errors import UserError
from imagen_jax.files import AnyPath, as_path, check_content, sha256_of_file
from imagen_jax.report.data import read_json

_AGAIN = "restore it from a copy"
_RECORD = {
    "stage": {"name": str, "image_size": int, "prediction": str, "model": {"type": str}},
    "sampling": {"num_steps": int, "sampler": {"type": str}, "thresholding": str},
    "text": {"encoder": {"type": str}, "max_length": int},
    "config_hash": str,
}
# Of card.json: the parts that a model card shows.
CARD_FORM = {
    "num_described": int,
    "num_repaired": int,
    "num_rejected": int,
    "num_dropped": {...: int},
    "source": dict,
    "caption_words": {"count": int},
    "caption_scripts": {...: int},
    "shorter_sides": {...: int},
    "values": {...: {...: int}},
}


@dataclass(frozen=True, kw_only=True)
class CardStage:
    """A stage by its newest checkpoint.

    Args:
      settings: content of stage.json.
      step: updates of the checkpoint.
      position: of the data, as position.json has it.
      num_parameters, mesh: as model-info.txt writes them; None where it does not.
      versions: of versions.json; empty where there is none.
    """

    settings: Mapping[str, Any]
    step: int
    position: Mapping[str, Any]
    num_parameters: str | None
    mesh: str | None
    versions: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the stage."""
        return self.settings["stage"]["name"]

    @property
    def draw_size(self) -> int:
        """Side of its images in pixels."""
        return self.settings["stage"].get("full_size") or self.settings["stage"]["image_size"]


@dataclass(frozen=True, kw_only=True)
class CardCorpus:
    """A corpus that stages were trained on.

    Args:
      name: of the corpus.
      num_examples: by split.
      digest: beginning of the sha256 of its corpus.json.
      image_size: side of its images, of the nominal square where they have sizes.
      card: content of card.json; None where there is none.
    """

    name: str
    num_examples: Mapping[str, int]
    digest: str
    image_size: int
    card: Mapping[str, Any] | None


def read_card_stages(run_dir: AnyPath) -> list[CardStage]:
    """The stages of a cascade directory, or of one stage's run directory, the smallest images first.

    Raises:
      UserError: there is no checkpoint, or a file beside one is damaged.
    """
    if not run_dir.is_dir():
        raise UserError(f"run directory {str(run_dir)!r} does not exist; give a cascade directory such as runs/demo")
    runs = [run_dir, *sorted(one for one in run_dir.iterdir() if one.is_dir())]
    found = [_read_stage(one, step) for one in runs if (step := folders.latest_step(one)) is not None]
    if not found:
        raise UserError(
            f"no trained stage under {str(run_dir)!r}: expected checkpoints/checkpoint_N in it or in its "
            "sub-directories (base/, sr/, …); train first, or check the path"
        )
    return sorted(found, key=lambda stage: stage.draw_size)


def _read_stage(run: AnyPath, step: int) -> CardStage:
    checkpoint = folders.checkpoint_dir(run, step)
    settings, place = (_object(checkpoint / name) for name in ("stage.json", "position.json"))
    check_content(checkpoint / "stage.json", settings, _RECORD, _AGAIN)
    check_content(checkpoint / "position.json", place, {"step": int, "position": dict}, _AGAIN)
    info = run / "model-info.txt"
    told = info.read_bytes().decode(errors="replace") if info.is_file() else ""
    count, mesh = (re.search(rf"^{word}: (.*)$", told, re.MULTILINE) for word in ("total parameters", "mesh"))
    return CardStage(
        settings=settings,
        step=step,
        position=place["position"],
        num_parameters=count[1] if count else None,
        mesh=mesh[1] if mesh else None,
        versions=read_json(run / "versions.json", dict) or {},
    )


def _object(path: AnyPath) -> dict[str, Any]:
    content = read_json(path, dict)
    if content is None:
        raise UserError(f"{path.parent} has no {path.name}; upgrade the run by `imagen_jax upgrade_run` first")
    return content


def trained_on(stages: Sequence[CardStage]) -> set[str]:
    """Digests of the corpora that the stages' positions name."""
    named = [one.position.get("corpus") for one in stages]
    mixed = [one.position.get("corpora") for one in stages]
    named += [str(one).split()[-1] for corpora in mixed if isinstance(corpora, Mapping) for one in corpora.values()]
    return {one for one in named if isinstance(one, str)}


def read_corpora(run_dir: AnyPath, given: Sequence[str], stages: Sequence[CardStage]) -> list[CardCorpus]:
    """The corpora with their data cards.

    Args:
      run_dir: whose folder "corpus" is taken where no corpus is given.
      given: their folders.
      stages: what was trained on them.

    Raises:
      UserError: a folder that is given holds no corpus, a damaged one, or one that no stage was trained on.
    """
    wanted = trained_on(stages)
    if not given:
        beside = run_dir / "corpus"
        found = _read_corpus(beside) if (beside / "corpus.json").is_file() else None
        return [found] if found is not None and found.digest in wanted else []
    corpora = []
    for path in given:
        one = _read_corpus(as_path(path))
        if wanted and one.digest not in wanted:
            raise UserError(
                f"--corpus={path} has the digest {one.digest}, the stages were trained on {', '.join(sorted(wanted))}; "
                "give that corpus, or leave --corpus out"
            )
        corpora.append(one)
    return corpora


def _read_corpus(folder: AnyPath) -> CardCorpus:
    path = folder / "corpus.json"
    manifest = read_json(path, dict)
    if manifest is None:
        raise UserError(f"no corpus in {os.fspath(folder)!r}: it has no corpus.json; give a folder of build_corpus")
    wanted = {"name": str, "image_size": int, "splits": {...: {"num_examples": int}}}
    check_content(path, manifest, wanted, _AGAIN)
    card = read_json(folder / "card.json", dict)
    if card is not None:
        check_content(folder / "card.json", card, CARD_FORM, f"write it anew: imagen_jax build_corpus --audit {folder}")
    return CardCorpus(
        name=manifest["name"],
        num_examples={split: entry["num_examples"] for split, entry in manifest["splits"].items()},
        digest=sha256_of_file(path)[:16],
        image_size=manifest["image_size"],
        card=card,
    )
