"""Scores of single images and atoms → GenEval's and GenEval 2's tables, on a scale from 0 to 1."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagen_jax.evals.suites.rows import SuiteRow


def geneval_summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share of correct images of each task, and their mean over tasks (djghosh13/geneval, summary_scores.py).

    Args:
      results: one an image, with tag, correct and metadata, at least one.

    Returns:
      "overall", "tasks" by tag, "correct_images", "correct_prompts" (those with at least one correct image) and the
      numbers of images and prompts.
    """
    tasks: dict[str, list[bool]] = {}
    prompts: dict[str, bool] = {}
    for one in results:
        correct, prompt = bool(one["correct"]), str(one["metadata"])
        tasks.setdefault(one["tag"], []).append(correct)
        prompts[prompt] = prompts.get(prompt, False) or correct
    means = {tag: float(np.mean(verdicts)) for tag, verdicts in tasks.items()}
    return {
        "overall": float(np.mean(list(means.values()))),
        "tasks": means,
        "correct_images": float(np.mean([bool(one["correct"]) for one in results])),
        "correct_prompts": float(np.mean(list(prompts.values()))),
        "num_images": len(results),
        "num_prompts": len(prompts),
    }


def soft_tifa_summary(
    scores: Sequence[Sequence[float]], atom_counts: Sequence[int], skills: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Soft-TIFA of GenEval 2 (arXiv 2512.16853): arithmetic mean (AM) and geometric mean (GM) of each prompt's scores.

    AM estimates how many atoms are right, GM how many prompts are right as a whole.

    Args:
      scores: of each prompt's questions, in [0, 1], at least one.
      atom_counts: atoms of each prompt.
      skills: of each question.

    Returns:
      "am" and "gm", means over prompts; "by_atom_count": both of each number of atoms; "by_skill": mean over questions.
    """
    arithmetic = [float(np.mean(one)) for one in scores]
    geometric = [math.prod(one) ** (1 / len(one)) for one in scores]
    by_atoms = {}
    for count in sorted(set(atom_counts)):
        chosen = [i for i, atoms in enumerate(atom_counts) if atoms == count]
        by_atoms[str(count)] = {
            "am": float(np.mean([arithmetic[i] for i in chosen])),
            "gm": float(np.mean([geometric[i] for i in chosen])),
            "num_prompts": len(chosen),
        }
    by_skill: dict[str, list[float]] = {}
    for values, names in zip(scores, skills, strict=True):
        for value, name in zip(values, names, strict=True):
            by_skill.setdefault(name, []).append(value)
    return {
        "am": float(np.mean(arithmetic)),
        "gm": float(np.mean(geometric)),
        "by_atom_count": by_atoms,
        "by_skill": {name: float(np.mean(values)) for name, values in sorted(by_skill.items())},
    }


def sum_up_geneval(rows: Sequence[SuiteRow], scores: Any) -> dict[str, Any] | None:
    """The summary of GenEval's results.jsonl; None of anything else."""
    wanted = ("tag", "correct", "metadata")
    if not isinstance(scores, list) or not scores:
        return None
    if not all(isinstance(one, dict) and all(name in one for name in wanted) for one in scores):
        return None
    return geneval_summary([{**one, "tag": str(one["tag"])} for one in scores])


def sum_up_geneval2(rows: Sequence[SuiteRow], scores: Any) -> dict[str, Any] | None:
    """The summary of GenEval 2's lists of scores, one a prompt; None of anything else."""
    if not isinstance(scores, list) or len(scores) != len(rows):
        return None
    for row, values in zip(rows, scores, strict=True):
        if not isinstance(values, list) or len(values) != len(row.fields["skills"]):
            return None
        if not all(isinstance(one, int | float) and 0 <= one <= 1 for one in values):
            return None
    lists = [[float(one) for one in values] for values in scores]
    return soft_tifa_summary(lists, [row.fields["atom_count"] for row in rows], [row.fields["skills"] for row in rows])
