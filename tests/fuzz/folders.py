"""Folders of which one file is spoilt at a time."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.mutate import damaged, json_file


class Folder:
    """A folder whose files come back to what they were before the next one is spoilt.

    Args:
      path: the folder; what it holds now is the sound state.
      loved: a file that is spoilt more often than the others.
      share: how often, of all cases.

    Attributes:
      whole: content of every file in the sound state.
    """

    def __init__(self, path: Path, loved: str, share: float):
        self.path, self._loved, self._share = path, loved, share
        self.whole = {one.relative_to(path).as_posix(): one.read_bytes() for one in path.rglob("*") if one.is_file()}

    def spoil(
        self, chance: random.Random, spoilt: Callable[[random.Random, bytes], bytes] | None = None
    ) -> tuple[str, bytes]:
        """Writes one file anew.

        Args:
          chance: the source of every choice.
          spoilt: makes new content of the old; None: a changed tree of a JSON file, damage in others.

        Returns:
          The file and its content.
        """
        self._restore()
        name = self._loved if chance.random() < self._share else chance.choice(sorted(self.whole))
        content = (spoilt or self._spoilt(name))(chance, self.whole[name])
        (self.path / name).write_bytes(content)
        return name, content

    def _spoilt(self, name: str) -> Callable[[random.Random, bytes], bytes]:
        if name.endswith(".json"):
            return lambda chance, content: json_file(chance, json.loads(content))
        return self._damaged

    def _damaged(self, chance: random.Random, content: bytes) -> bytes:
        made = damaged(chance, content, list(self.whole.values()))
        # A size that differs is noticed first.
        return made if chance.random() < 0.5 else (made + bytes(len(content)))[: len(content)]

    def _restore(self) -> None:
        for path in list(self.path.rglob("*")):
            name = path.relative_to(self.path).as_posix()
            if path.is_file() and (name not in self.whole or path.read_bytes() != self.whole[name]):
                path.unlink()
        for path in list(self.path.iterdir()):
            if path.is_dir() and not any(name.startswith(f"{path.name}/") for name in self.whole):
                shutil.rmtree(path)
        for name, content in self.whole.items():
            if not (self.path / name).exists():
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                (self.path / name).write_bytes(content)
