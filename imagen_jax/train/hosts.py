"""Comparison of what the processes of a run are made of, before its first step.

Processes that differ either hang, or train something that nobody configured, and say nothing.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from imagen_jax.checkpoints.processes import gathered
from imagen_jax.data.config import DataConfig
from imagen_jax.data.tasks import shares_of
from imagen_jax.errors import UserError, listed
from imagen_jax.text.store.reader import EmbeddingStore
from imagen_jax.train.run_dir import versions

_SHOWN = 100
# Source places in a program's text: paths differ where programs do not.
_PLACES = re.compile(r", metadata=\{[^{}]*\}")


def check_same(facts: Callable[[], Mapping[str, Any]]) -> None:
    """Compares facts about this process with those of the others; alone, asks for none.

    Args:
      facts: gives them by name, JSON-able, under the same names in every process.

    Raises:
      UserError: in every process, where one differs from process 0; names it and what differs.
    """
    if jax.process_count() == 1:
        return
    told = gathered(json.dumps(facts(), sort_keys=True).encode())
    found = differences([json.loads(one) for one in told])
    if found:
        raise UserError(
            f"the processes of this run are not alike: {listed(found)}; give all hosts the same command, code, "
            "packages and data"
        )


def differences(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Differences of each process from the first, in words; a text of many lines by its first line that differs."""
    first, *others = facts
    found = []
    for number, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            one, two = first.get(name), other.get(name)
            if one != two:
                if isinstance(one, str) and isinstance(two, str):
                    one, two = _first_line_that_differs(one, two)
                found.append(f"{name}: process {number} has {_short(two)}, process 0 has {_short(one)}")
    return found


def _first_line_that_differs(one: str, two: str) -> tuple[str, str]:
    ones, twos = one.splitlines(), two.splitlines()
    # So that a missing line has something beside it.
    longest = max(len(ones), len(twos))
    pairs = zip(ones + [""] * (longest - len(ones)), twos + [""] * (longest - len(twos)), strict=True)
    return next(((here, there) for here, there in pairs if here != there), (one, two))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def code_and_config(operative_text: str) -> dict[str, Any]:
    """Config, versions, revision, and a digest of the package's own source, which may be changed or no checkout."""
    return {"config": operative_text, **versions(), "source": _source_digest()}


def _source_digest() -> str:
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def data(config: DataConfig, position: Mapping[str, Any]) -> dict[str, Any]:
    """Fingerprints of corpora, which the data's position names, and of embedding stores."""
    stores = [EmbeddingStore.open(share.store_dir) for share in shares_of(config) if share.store_dir is not None]
    return {"data": dict(position), "stores": [dict(store.fingerprint) for store in stores]}


def program(step: object) -> dict[str, Any]:
    """Fingerprint of the compiled step; nothing of a step of several programs, one a size."""
    if not isinstance(step, jax.stages.Compiled):
        return {}
    text = _PLACES.sub("", step.as_text() or "")
    # Tables of source files come before the first computation.
    lines = [line for line in text.splitlines() if line.startswith((" ", "%", "ENTRY", "HloModule"))]
    return {"compiled program": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]}
