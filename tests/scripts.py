"""Scripts of data/, run in this process as from the command line."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "data"


def run_script(script: str, *arguments: str) -> int:
    """Runs a script to its end.

    `imagen_jax script` would become the script, and the process of the tests would end with it.

    Args:
      script: a file in data/.
      arguments: its words.

    Returns:
      The exit code.
    """
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    return ended.value.code
