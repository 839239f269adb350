"""Devices that jax cannot have."""

import contextlib
import os
import traceback
from collections.abc import Iterator

from imagen_jax.errors import UserError

_LOOKS_FOR_DEVICES = os.path.join("jax", "_src", "xla_bridge.py")


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
    """Around a mode: what jax raises where it finds no device, an AssertionError among others, is told in one line.

    Raises:
      UserError: jax has no device of the kind that it was told to use.
    """
    try:
        yield
    except (AssertionError, RuntimeError) as error:
        if not _from_looking_for_devices(error):
            raise
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = " ".join(str(error).split()) or "no device of that kind, or jax lacks its plugin"
        raise UserError(
            f"jax cannot use the devices it is told to use, JAX_PLATFORMS={asked!r} ({reason}); install jax for them "
            "(the extras cuda13 and tpu), or unset JAX_PLATFORMS to take what is here"
        ) from error


def _from_looking_for_devices(error: BaseException | None) -> bool:
    while error is not None:
        if any(frame.filename.endswith(_LOOKS_FOR_DEVICES) for frame in traceback.extract_tb(error.__traceback__)):
            return True
        error = error.__cause__ or error.__context__
    return False
