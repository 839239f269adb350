"""Config of any frozen text encoder, whatever its network.

Loading, copying and fingerprints ask the config and never which encoder it is of.
"""

import abc
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError

DTYPES = ("float32", "bfloat16")
MAX_SIZE = 2**31 - 1
_JSON_TYPES = (int, float, bool, str)


class EncoderConfig(abc.ABC):
    """Sizes of a frozen text encoder; a frozen dataclass in each case.

    Attributes:
      architecture: name of the network, "t5", "clip" or "bert".
      vocab_size: rows of the token embedding.
      embed_dim: width of the token outputs.
      num_layers: layers of the published model.
      scan_layers: parameters of the layers stand stacked.
      dtype: compute dtype.
      max_positions: most tokens of a caption; None for an encoder without such a bound.
    """

    architecture: ClassVar[str]
    vocab_size: int
    embed_dim: int
    num_layers: int
    scan_layers: bool
    dtype: str
    max_positions: int | None = None

    @abc.abstractmethod
    def network(self, param_dtype: Any = jnp.float32) -> nn.Module:
        """The Linen module: (token ids (b, n), mask (b, n)) → float32 (b, n, embed_dim)."""

    def fingerprint(self) -> dict[str, Any]:
        """Everything that bears on the embeddings, as JSON gives it back."""
        return {"architecture": self.architecture, **self.embedding_fields()}

    def embedding_fields(self) -> dict[str, Any]:
        """The fields that bear on the embeddings, as JSON gives them back."""
        made = json.loads(json.dumps(self.to_json()))
        del made["scan_layers"]
        return made

    def replaced(self, **changes: Any) -> "EncoderConfig":
        """The config with other values of some fields."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def to_json(self) -> dict[str, Any]:
        """Its fields; JSON makes lists of tuples."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "EncoderConfig":
        """The config whose `to_json` went through JSON.

        Raises:
          UserError: a field is unknown or absent, or a value is of another type or out of range.
        """
        types = {field.name: field.type for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        values = {}
        for name, value in fields.items():
            value = tuple(value) if isinstance(value, list) else value
            wanted = types.get(name)
            value = float(value) if wanted is float and type(value) is int else value
            if isinstance(wanted, type) and wanted in _JSON_TYPES and type(value) is not wanted:
                raise UserError(
                    f"{cls.__name__}.{name} is {str(value)[:80]!r} in the checkpoint; expected {wanted.__name__}"
                )
            values[name] = value
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"the checkpoint's {cls.__name__} cannot be built: {error}") from error


def check_positive(config: EncoderConfig, *names: str) -> None:
    """Refuses fields that are no positive integers, or no sizes of an array.

    Raises:
      UserError: names the first.
    """
    for name in names:
        check_count(f"{type(config).__name__}.{name}", getattr(config, name), most=MAX_SIZE)
