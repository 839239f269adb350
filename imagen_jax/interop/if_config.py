"""unet/config.json of a DeepFloyd IF stage, checked and turned into the network's sizes."""

from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.models.if_unet import IFUNetConfig

_DOWN = {"ResnetDownsampleBlock2D": False, "SimpleCrossAttnDownBlock2D": True}
_UP = {"ResnetUpsampleBlock2D": False, "SimpleCrossAttnUpBlock2D": True}
_REQUIRED = (
    "act_fn addition_embed_type addition_embed_type_num_heads attention_head_dim block_out_channels "
    "cross_attention_dim cross_attention_norm down_block_types encoder_hid_dim flip_sin_to_cos freq_shift in_channels "
    "layers_per_block mid_block_type norm_eps norm_num_groups only_cross_attention out_channels "
    "resnet_time_scale_shift up_block_types"
).split()
# Keys that may be absent, and the values that this network computes.
_ONLY: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("gelu",),
    "addition_embed_type": ("text",),
    "addition_time_embed_dim": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None, "timestep"),
    "class_embeddings_concat": (False,),
    "cross_attention_norm": (None, "group_norm"),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None, "text_proj"),
    "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn",),
    "mid_block_only_cross_attention": (None, True, False),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "projection_class_embeddings_input_dim": (None,),
    "resnet_skip_time_act": (True, False),
    "resnet_time_scale_shift": ("scale_shift", "default"),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None, "gelu"),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "flip_sin_to_cos": (True, False),
}
# Keys that change nothing here: of training, or of blocks that IF lacks.
_IDLE = {
    "_diffusers_version",
    "_name_or_path",
    "sample_size",
    "dropout",
    "transformer_layers_per_block",
    "upcast_attention",
    "use_linear_projection",
}
_COUNTS = (
    "addition_embed_type_num_heads cross_attention_dim encoder_hid_dim in_channels norm_num_groups out_channels "
    "time_embedding_dim conv_in_kernel conv_out_kernel"
).split()
_KERNELS = {"conv_in_kernel", "conv_out_kernel"}
_MOST, _MOST_LAYERS, _MOST_LEVELS, _LARGEST = 65_536, 1024, 16, 1e30
_NUMBERS = {"norm_eps", "freq_shift", "resnet_out_scale_factor", "mid_block_scale_factor"}


def if_config(source: str, given: Any) -> IFUNetConfig:
    """Reads the sizes of an IF network.

    Args:
      source: name of the file, for messages.
      given: its content.

    Raises:
      UserError: names every key that is missing, unknown or has a value that is not supported, in one line.
    """
    if not isinstance(given, dict):
        raise UserError(f"{source} must hold one JSON object, got {type(given).__name__}; download it again")
    known = set(_REQUIRED) | _ONLY.keys() | _IDLE | set(_COUNTS) | _NUMBERS
    faults = [f"{key} is missing" for key in _REQUIRED if key not in given]
    faults += [f"{key} is not known" for key in sorted(given.keys() - known) if given[key] is not None]
    for key, value in given.items():
        optional = key == "time_embedding_dim" and value is None
        if key in _ONLY and value not in _ONLY[key]:
            faults.append(f"{key} ({value!r}) must be {' or '.join(map(repr, _ONLY[key]))}")
        elif key in _COUNTS and not optional and not _is_count(value):
            faults.append(f"{key} ({_short(value)}) must be an integer from 1 to {_MOST}")
        elif key in _KERNELS and value % 2 == 0:
            faults.append(f"{key} ({value}) must be odd: an even one makes images smaller")
        elif key in _NUMBERS and not _is_number(value):
            faults.append(f"{key} ({_short(value)}) must be a finite number")
    if not faults:
        faults = _level_faults(given)
    if faults:
        raise UserError(f"{source} describes no IF network that is supported: {'; '.join(faults)}")
    return _config(given)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


def _short(value: Any) -> str:
    return ascii(value)[:80] if not isinstance(value, int) or abs(value) < 1 << 256 else "of many digits"


def _per_level(given: dict[str, Any], key: str) -> list[Any]:
    value = given[key]
    return value if isinstance(value, list) else [value] * len(given["block_out_channels"])


def _level_faults(given: dict[str, Any]) -> list[str]:
    """Faults of the settings that have one entry a level, and of sizes that must divide each other."""
    widths = given["block_out_channels"]
    if not isinstance(widths, list) or not 0 < len(widths) <= _MOST_LEVELS:
        return [f"block_out_channels ({_short(widths)}) must be a list of 1 to {_MOST_LEVELS} sizes"]
    levels, faults = len(given["block_out_channels"]), []
    checks = {
        "block_out_channels": _is_count,
        "layers_per_block": lambda value: _is_count(value) and value <= _MOST_LAYERS,
        "attention_head_dim": _is_count,
        "only_cross_attention": lambda value: isinstance(value, bool),
        "down_block_types": lambda value: isinstance(value, str) and value in _DOWN,
        "up_block_types": lambda value: isinstance(value, str) and value in _UP,
    }
    for key, check in checks.items():
        values = _per_level(given, key)
        if len(values) != levels or not all(map(check, values)):
            faults.append(f"{key} ({_short(given[key])}) must have {levels} supported entries")
    if faults:
        return faults
    widths, groups = given["block_out_channels"], given["norm_num_groups"]
    divisions = [("block_out_channels", width, "norm_num_groups", groups) for width in widths]
    divisions += [
        ("block_out_channels", w, "attention_head_dim", h)
        for w, h in zip(widths, _per_level(given, "attention_head_dim"), strict=True)
    ]
    divisions += [("encoder_hid_dim", given["encoder_hid_dim"], "heads", given["addition_embed_type_num_heads"])]
    divisions += [("block_out_channels[0]", widths[0], "sin and cos", 2)]
    if given["cross_attention_norm"]:
        divisions += [("cross_attention_dim", given["cross_attention_dim"], "groups of the text", 32)]
    return [f"{a} ({x}) must be divisible by {b} ({y})" for a, x, b, y in divisions if x % y]


def _config(given: dict[str, Any]) -> IFUNetConfig:
    only, mid = given["only_cross_attention"], given.get("mid_block_only_cross_attention")
    return IFUNetConfig(
        in_channels=given["in_channels"],
        out_channels=given["out_channels"],
        widths=tuple(given["block_out_channels"]),
        layers=tuple(_per_level(given, "layers_per_block")),
        down_attends=tuple(_DOWN[kind] for kind in given["down_block_types"]),
        up_attends=tuple(_UP[kind] for kind in given["up_block_types"]),
        head_dims=tuple(_per_level(given, "attention_head_dim")),
        only_cross=tuple(_per_level(given, "only_cross_attention")),
        # diffusers lets one value for all levels stand for the middle, and a list not.
        mid_only_cross=bool(mid if mid is not None else only is True),
        text_dim=given["encoder_hid_dim"],
        cross_dim=given["cross_attention_dim"],
        text_norm=given["cross_attention_norm"] is not None,
        pool_heads=given["addition_embed_type_num_heads"],
        time_dim=given.get("time_embedding_dim") or 4 * given["block_out_channels"][0],
        embed_act=given.get("time_embedding_act_fn") is not None,
        skip_time_act=given.get("resnet_skip_time_act", False),
        noise_level=given.get("class_embed_type") == "timestep",
        groups=given["norm_num_groups"],
        eps=float(given["norm_eps"]),
        out_scale=float(given.get("resnet_out_scale_factor", 1.0)),
        mid_scale=float(given.get("mid_block_scale_factor", 1.0)),
        cos_first=given["flip_sin_to_cos"],
        freq_shift=float(given["freq_shift"]),
        kernel_in=given.get("conv_in_kernel", 3),
        kernel_out=given.get("conv_out_kernel", 3),
        scale_shift=given["resnet_time_scale_shift"] == "scale_shift",
    )
