"""CascadePrograms as JAX traces them."""

from collections.abc import Iterator
from typing import Any


def bodies(params: dict[str, Any]) -> Iterator[Any]:
    """The programs inside an equation, from its parameters: a scan's body, a cond's branches, a jit's own."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            body = getattr(item, "jaxpr", item)
            if hasattr(body, "eqns"):
                yield body
