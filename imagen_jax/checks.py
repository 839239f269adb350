"""Checks of settings that are counts, with one wording."""

from imagen_jax.errors import UserError


def check_count(name: str, value: object, least: int = 1, hint: str = "") -> None:
    """Refuses what is no integer of at least `least`; True and False are no integers here.

    Args:
      name: the setting, as its user writes it.
      value: what it was set to.
      least: smallest value allowed.
      hint: what is usual, or another way to set it.

    Raises:
      UserError: names the setting, its value and the bound.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} ({value!r}) must be an integer >= {least}" + (f"; {hint}" if hint else ""))
