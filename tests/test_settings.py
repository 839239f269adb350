"""Every field of every class that gin files set refuses values of another type, by its name and on one line."""

import dataclasses
import importlib
import math
import re
from pathlib import Path
from typing import Any

import pytest

from imagen_jax import gin_config
from imagen_jax.checks import check_field
from imagen_jax.errors import UserError
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.transformer import PixelTransformer
from imagen_jax.models.unet import UNet
from imagen_jax.train.optimizer import OptimizerConfig

_CONFIGS = Path(__file__).parents[1] / "configs"
_IMPORT = re.compile(r"^from (imagen_jax[\w.]*) import (\w+)", re.MULTILINE)
# gin text, and the types that take it; infinity is for the fields that have it as their default.
_VALUES = {
    "'x'": "str",
    "None": "None",
    "True": "bool",
    "-3": "int float",
    "1.5": "float",
    "1e999": "",
    "-1e999": "",
    "()": "tuple Sequence",
    "('x', 1e999)": "",
    "[None]": "",
}


def _modules() -> list[str]:
    found = {
        f"{package}.{name}" for path in _CONFIGS.rglob("*.gin") for package, name in _IMPORT.findall(path.read_text())
    }
    return sorted(found | {f"imagen_jax.diffusion.{name}" for name in ("guidance", "losses", "time_sampling")})


def _fields() -> list[tuple[type, Any]]:
    classes = [
        kind
        for module in map(importlib.import_module, _modules())
        for kind in vars(module).values()
        if dataclasses.is_dataclass(kind)
        and isinstance(kind, type)
        and kind.__module__ == module.__name__
        # Configs take keywords only; others, such as the points of a sweep, are built by code.
        and (
            kind in (UNet, EfficientUNet, PixelTransformer) or all(field.kw_only for field in dataclasses.fields(kind))
        )
    ]
    return [(cls, field) for cls in classes for field in dataclasses.fields(cls) if field.init]


def _takes(field: Any, kinds: str) -> bool:
    """By the text of the annotation alone."""
    parts = (getattr(field.type, "__name__", "") if isinstance(field.type, type) else str(field.type)).split(" | ")
    plain = {re.sub(r"^[\w.]*?(\w+)\[.*", r"\1", part) for part in parts}
    return bool(plain & set(kinds.split())) or "Any" in plain


def test_values_of_another_type_are_refused_by_their_name():
    fields = [(cls, field) for cls, field in _fields() if field.name not in ("parent", "name") or field.type is str]
    assert len(fields) > 150
    for cls, field in fields:
        if not _takes(field, "Any") and not re.search("Callable|Mapping|dict", str(field.type)):
            for value, kinds in _VALUES.items():
                if _takes(field, kinds) or (value == "1e999" and field.default == math.inf):
                    continue
                module, setting = cls.__module__.rpartition("."), f"{cls.__name__}.{field.name}"
                text = [f"from {module[0]} import {module[2]} as there", f"there.{setting} = {value}"]
                with pytest.raises(UserError) as error:
                    _load(cls, text)
                assert str(error.value).startswith(f"{setting} ("), (setting, value, str(error.value))


def _load(cls: type, lines: list[str]) -> Any:
    path = Path("settings.gin")
    path.write_text("\n".join([gin_config.DYNAMIC, *lines]))
    return gin_config.load(cls, [str(path)])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("setting", "value"), [
    ("learning_rate", "0.0"), ("learning_rate", "-1.0"), ("warmup_steps", "-1"), ("b1", "1.0"), ("eps", "0.0"),
    ("weight_decay", "-0.5"), ("grad_clip_norm", "0.0"), ("schedule", "'x'"), ("name", "'x'"),
])  # fmt: skip
def test_values_out_of_range_are_refused_by_their_name(setting, value):
    with pytest.raises(UserError, match=rf"OptimizerConfig\.{setting} \("):
        _load(
            OptimizerConfig,
            ["from imagen_jax.train import optimizer", f"optimizer.OptimizerConfig.{setting} = {value}"],
        )


def test_the_value_of_a_macro_and_a_scope():
    lines = [
        "from imagen_jax.train import optimizer",
        "RATE = 'x'",
        "sr/optimizer.OptimizerConfig.learning_rate = %RATE",
    ]
    with pytest.raises(UserError, match=r"^sr/OptimizerConfig.learning_rate \('x'\) must be a number"):
        _load(OptimizerConfig, lines)


def test_no_number_is_no_finite_number():
    for value in (math.nan, -math.inf, (1.0, (math.nan,))):
        with pytest.raises(UserError, match=r"^X\.y \(.*finite"):
            check_field("X.y", value, Any)
    check_field("X.y", math.inf, float, infinite=True)
    with pytest.raises(UserError, match="finite"):
        check_field("X.y", math.nan, float, infinite=True)
