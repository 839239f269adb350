"""Frozen settings as plain JSON and back, field by field.

A record that came with a checkpoint is data: reading it builds instances of the classes that are registered here, from
fields that those classes have, and runs nothing else. The form of an object is

    {"type": "CosineSchedule", "max_log_snr": 20.0, "shift": 0.0}

Numbers that JSON lacks are {"float": "inf"}; numpy's types are {"dtype": "float32"}.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from imagen_jax.checks import fits, words_of
from imagen_jax.diffusion import guidance, losses, noise_conditioning, samplers, schedules, time_grids, time_sampling
from imagen_jax.errors import UserError
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.if_backbone import IFBackbone
from imagen_jax.models.if_unet import IFUNetConfig
from imagen_jax.models.transformer import PixelTransformer
from imagen_jax.models.unet import UNet
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.text.encoder import TextConfig
from imagen_jax.text.encoders.bert import BertConfig
from imagen_jax.text.encoders.clip import CLIPConfig
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.weights.pretrained import Pretrained

T = TypeVar("T")

_CLASSES: dict[str, type] = {}
# What Linen adds to the fields of a module.
_LINEN_FIELDS = ("parent", "name")


def register(cls: type[T]) -> type[T]:
    """Lets records hold instances of a frozen dataclass or a Linen module; a class decorator.

        @plain_data.register
        class MyNetwork(nn.Module): …

    A program that reads such a record imports the module of the class first.

    Raises:
      UserError: it is no dataclass, or another class has its name.
    """
    if not dataclasses.is_dataclass(cls):
        raise UserError(f"{cls.__name__} must be a dataclass or a Linen module to stand in a record")
    if _CLASSES.setdefault(cls.__name__, cls) is not cls:
        raise UserError(f"a record may hold one class named {cls.__name__}; give yours another name")
    return cls


for _class in (
    *(Stage, SamplingConfig, TextConfig, UNet, EfficientUNet, PixelTransformer, IFBackbone, IFUNetConfig),
    *(T5Config, CLIPConfig, BertConfig, Pretrained),
    *(
        kind
        for module in (guidance, losses, noise_conditioning, samplers, schedules, time_grids, time_sampling)
        for kind in vars(module).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    ),
):
    register(_class)


def class_named(name: str) -> type:
    """The registered class of a name.

    Raises:
      UserError: there is none; names the fix.
    """
    if name not in _CLASSES:
        raise UserError(
            f"a record names the class {name!r}, which this program does not know; import the module that registers "
            f"it (checkpoints.plain_data.register), or use the version of imagen_jax that wrote the record"
        )
    return _CLASSES[name]


def fields_of(cls: type) -> list[str]:
    """Names of the fields that a record holds of a class."""
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    return [name for name in names if name not in _LINEN_FIELDS] if "parent" in names else names


def to_data(value: Any) -> Any:
    """JSON-able data of settings.

    Raises:
      UserError: a part is of a class that is not registered.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list | tuple):
        return [to_data(one) for one in value]
    # gin hands out instances of a subclass that it makes, with the name and the module of the class.
    cls = next((one for one in type(value).__mro__ if _CLASSES.get(one.__name__) is one), None)
    if cls is not None and (cls.__name__, cls.__module__) == (type(value).__name__, type(value).__module__):
        return {"type": cls.__name__} | {name: to_data(getattr(value, name)) for name in fields_of(cls)}
    if isinstance(value, type) and value in (jnp.float32, jnp.bfloat16):
        return {"dtype": np.dtype(value).name}
    raise UserError(
        f"{value!r} cannot stand in a checkpoint's record; decorate its class, {type(value).__name__}, with "
        f"@checkpoints.plain_data.register"
    )


def from_data(data: Any) -> Any:
    """Settings from what `to_data` gave; lists become tuples, fields that are absent take their defaults.

    Raises:
      UserError: a class or a field is unknown, or the class refuses a value.
    """
    if isinstance(data, list):
        return tuple(from_data(one) for one in data)
    if not isinstance(data, Mapping):
        return data
    if set(data) == {"float"} and data["float"] in ("inf", "-inf", "nan"):
        return float(data["float"])
    if set(data) == {"dtype"} and data["dtype"] in ("float32", "bfloat16"):
        return getattr(jnp, data["dtype"])
    fields = {name: value for name, value in data.items() if name != "type"}
    if not isinstance(data.get("type"), str):
        raise UserError(f"a record holds an object without a type: {sorted(map(str, data))[:8]}; it is damaged")
    return build(data["type"], {name: from_data(value) for name, value in fields.items()})


def build(name: str, fields: Mapping[str, Any]) -> Any:
    """An instance of the registered class `name`.

    Raises:
      UserError: the class or a field is unknown, a needed field is absent, a number or a text is given where the other
        belongs, or the class refuses a value.
    """
    cls = class_named(name)
    unknown = sorted(fields.keys() - set(fields_of(cls)))
    if unknown:
        raise UserError(
            f"a record gives {name} the fields {', '.join(unknown)}, which it does not have; use the version of "
            f"imagen_jax that wrote it"
        )
    for field in dataclasses.fields(cls):
        if field.name in fields and not fits(fields[field.name], field.type):
            raise UserError(
                f"a record gives {name} {str(fields[field.name])[:80]!r} for {field.name}; expected "
                f"{words_of(field.type)}; it is damaged"
            )
    try:
        return cls(**fields)
    except TypeError as error:
        raise UserError(f"a record's {name} cannot be built: {error}") from error
