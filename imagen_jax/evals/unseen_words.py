"""Unseen words: does the cascade draw what is said in words that its training never showed?

The claim of the paper (sections 2.1 and 4.4) is that a large language model's frozen embeddings carry knowledge that no
image-text data taught. An encoder that knows "crimson" puts it near "red"; a random one cannot. `data.shapes_words`
has the prompts, the exact judge the verdicts.
"""

import dataclasses
import os

import numpy as np
from scipy.stats import binomtest

from imagen_jax.checks import check_count
from imagen_jax.data.shapes_words import KINDS, WordsPrompt, words_prompts
from imagen_jax.evals.shapes_judge import Verdict, judge
from imagen_jax.files import write_json
from imagen_jax.sampling.cascade import Cascade
from imagen_jax.sampling.images import sheet, write_png
from imagen_jax.versions import code_version

RESULT = "words.json"
# Of each kind, the part of a verdict that its word decides.
PARTS = {
    "colours": "colour",
    "shapes": "shape",
    "relations": "relation",
    "templates": "both",
    "typos": "both",
}
_SHOWN = 16


def share(good: list[bool]) -> dict[str, float]:
    """Share of the verdicts that are good, with Wilson's interval of 95 %.

    Args:
      good: at least one.
    """
    low, high = binomtest(sum(good), len(good)).proportion_ci(0.95, "wilson")
    return {"share": sum(good) / len(good), "low": float(low), "high": float(high)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnseenWords:
    """Draws every prompt of `words_prompts` in seen and in unseen words from the same noise, and judges both.

    Args:
      num_prompts: of each kind.
      seed: of prompts and noise.
      batch_size: images drawn at a time.
    """

    num_prompts: int = 96
    seed: int = 1
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_count("UnseenWords.num_prompts", self.num_prompts)
        check_count("UnseenWords.batch_size", self.batch_size)

    def evaluate(self, cascade: Cascade, run_dir: str) -> None:
        """Writes RUN_DIR/words.json and RUN_DIR/eval/words.png."""
        prompts = words_prompts(self.seed, self.num_prompts)
        verdicts: dict[str, list[Verdict]] = {}
        for how, captions in (("seen", [one.seen for one in prompts]), ("unseen", [one.unseen for one in prompts])):
            images = cascade.sample(captions, seed=self.seed, batch_size=self.batch_size, label=f"{how} words")[-1]
            verdicts[how] = [judge(image, one.scene) for image, one in zip(images, prompts, strict=True)]
        # Evenly spread over the list, so that every kind of word is shown.
        shown = np.linspace(0, len(prompts) - 1, min(_SHOWN, len(prompts))).astype(int)
        info = {"prompts": [prompts[at].unseen for at in shown], "seed": self.seed}
        write_png(os.path.join(run_dir, "eval", "words.png"), sheet([images[at] for at in shown], 8), info)
        words = by_kind(prompts, verdicts)
        result = {
            "words": words,
            "num_prompts": self.num_prompts,
            "seed": self.seed,
            "config_hash": cascade.config_hash,
            "version": code_version(),
        }
        write_json(os.path.join(run_dir, RESULT), result)
        for kind, scores in words.items():
            seen, unseen = scores["seen"], scores["unseen"]
            print(
                f"{kind} ({scores['part']}): seen words {seen['share']:.3f}, unseen {unseen['share']:.3f} "
                f"({unseen['low']:.3f} to {unseen['high']:.3f})"
            )


def by_kind(prompts: list[WordsPrompt], verdicts: dict[str, list[Verdict]]) -> dict[str, dict]:
    """Shares of each kind of prompt, in seen and unseen words, and of every unseen word.

    Args:
      prompts: n of them.
      verdicts: n each, for "seen" and "unseen".
    """
    found: dict[str, dict] = {}
    for kind in KINDS:
        part, at = PARTS[kind], [number for number, one in enumerate(prompts) if one.kind == kind]
        good = {how: [bool(getattr(rows[number], part)) for number in at] for how, rows in verdicts.items()}
        words: dict[str, list[bool]] = {}
        for number, right in zip(at, good["unseen"], strict=True):
            words.setdefault(prompts[number].word, []).append(right)
        found[kind] = {"part": part, **{how: share(rows) for how, rows in good.items()}}
        if kind != "typos":  # Hardly a misspelt word comes twice.
            found[kind]["by_word"] = {word: sum(rows) / len(rows) for word, rows in sorted(words.items())}
    return found
