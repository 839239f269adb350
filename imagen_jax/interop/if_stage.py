"""One DeepFloyd IF stage from a diffusers folder: its network, its schedulers, and guided sampling."""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core import meta

from imagen_jax.checks import check_path
from imagen_jax.diffusion.noise_conditioning import enlarge
from imagen_jax.errors import UserError
from imagen_jax.files import read_json, size_of
from imagen_jax.interop.adapter import Path, check_finite, check_shapes, foreign_shape
from imagen_jax.interop.if_config import if_config
from imagen_jax.interop.scheduler import DiscreteDDPM
from imagen_jax.models.if_unet import IFUNet, IFUNetConfig
from imagen_jax.text.weights.checkpoint_arrays import SafetensorsArrays
from imagen_jax.typing import Array, Float

WEIGHTS, SCHEDULER_FILE = "diffusion_pytorch_model.safetensors", "scheduler_config.json"
_PICKLED = "diffusion_pytorch_model.bin"
_NUMBERED = re.compile(r"(blocks|resnets|attentions|samplers|to_out)_(\d+)$")


class IFAdapter:
    """Names and layouts of diffusers' IF state dict; see imagen_jax.interop.adapter.Adapter."""

    def foreign_name(self, path: Path) -> str:
        """See Adapter."""
        leaf = {"kernel": "weight", "scale": "weight"}.get(path[-1], path[-1])
        return ".".join([*(_NUMBERED.sub(r"\1.\2", part) for part in path[:-1]), leaf])

    def to_native(self, path: Path, array: np.ndarray) -> np.ndarray:
        """See Adapter: torch has output channels first, Flax last."""
        if path[-1] != "kernel":
            return array
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T

    def from_native(self, path: Path, array: np.ndarray) -> np.ndarray:
        """See Adapter."""
        if path[-1] != "kernel":
            return array
        return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def param_shapes(config: IFUNetConfig) -> dict[Path, tuple[int, ...]]:
    """Shape of every parameter, by its path; nothing is computed."""
    size = 2 ** (len(config.widths) - 1)
    images, text = jnp.zeros((1, size, size, config.in_channels)), jnp.zeros((1, 1, config.text_dim))
    tree = jax.eval_shape(IFUNet(config).init, jax.random.key(0), images, jnp.zeros(1), text, jnp.zeros(1))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(meta.unbox(tree["params"])).items()}


class IFStage:
    """A DeepFloyd IF stage.

    Args:
      config: sizes of the network.
      params: its parameters, float32.
      scheduler: of sampling.
      noising: scheduler that noises the low-resolution images; None for the base stage.
      settings: content of the JSON files that these are from, by the names of their folders.
    """

    def __init__(
        self,
        config: IFUNetConfig,
        params: Any,
        scheduler: DiscreteDDPM,
        noising: DiscreteDDPM | None,
        settings: Mapping[str, Mapping[str, Any]],
    ):
        self.config, self.params, self.scheduler, self.noising = config, params, scheduler, noising
        self.settings = settings
        self._apply = jax.jit(IFUNet(config).apply)

    def predict(
        self,
        z_t: Float[Array | np.ndarray, "b h w c"],
        timestep: Any,
        text: Float[Array | np.ndarray, "b n d"],
        low_res: Float[Array | np.ndarray, "b h w c"] | None = None,
        noise_level: Any = None,
    ) -> Float[Array, "b h w o"]:
        """Estimates eps in the first channels and the variance's fraction, in [-1, 1], in the others.

        Args:
          z_t: noisy images.
          timestep: integer times [b].
          text: embeddings, padded to the length of training (77), and not masked.
          low_res: low-resolution images, enlarged to z_t's size and noised; only for super-resolution.
          noise_level: integer times [b] to which they are noised.

        Raises:
          UserError: a shape does not fit the stage, or an input of super-resolution is missing or too much.
        """
        z_t, text = jnp.asarray(z_t, jnp.float32), jnp.asarray(text, jnp.float32)
        self._check(z_t, text, low_res, noise_level)
        x = z_t if low_res is None else jnp.concatenate([z_t, jnp.asarray(low_res, jnp.float32)], -1)
        batch = z_t.shape[:1]
        times = jnp.broadcast_to(jnp.asarray(timestep, jnp.float32), batch)
        levels = None if noise_level is None else jnp.broadcast_to(jnp.asarray(noise_level, jnp.float32), batch)
        with jax.default_matmul_precision("highest"):
            return self._apply({"params": self.params}, x, times, text, levels)

    def _check(self, z_t: Any, text: Any, low_res: Any, noise_level: Any) -> None:
        c, step = self.config, 2 ** (len(self.config.widths) - 1)
        if (low_res is not None) != (self.noising is not None) or (noise_level is not None) != c.noise_level:
            raise UserError(
                "low_res and noise_level must be given to a super-resolution stage and to no other; "
                f"this stage has {c.in_channels} input channels"
            )
        channels = c.in_channels // 2 if self.noising else c.in_channels
        if z_t.ndim != 4 or z_t.shape[-1] != channels or z_t.shape[1] % step or z_t.shape[2] % step:
            raise UserError(f"z_t has shape {z_t.shape}; expected [b, h, w, {channels}], h and w divisible by {step}")
        if text.ndim != 3 or text.shape[0] != z_t.shape[0] or text.shape[-1] != c.text_dim:
            raise UserError(f"text has shape {text.shape}; expected [{z_t.shape[0]}, n, {c.text_dim}]")
        if low_res is not None and np.shape(low_res) != z_t.shape:
            raise UserError(f"low_res has shape {np.shape(low_res)}; expected z_t's, {z_t.shape}: enlarge it first")

    def sample(
        self,
        text: Float[Array | np.ndarray, "b n d"],
        null_text: Float[Array | np.ndarray, "b n d"],
        noise: Float[Array | np.ndarray, "s b h w c"],
        *,
        guidance_weight: float = 7.0,
        low_res: Float[Array | np.ndarray, "b l k c"] | None = None,
        low_res_noise: Float[Array | np.ndarray, "b h w c"] | None = None,
        noise_level: int | None = None,
    ) -> Float[Array, "s b h w c"]:
        """Draws images with noise from outside; returns z after every step, the image last.

        Args:
          text, null_text: embeddings of the prompts and of "".
          noise: z_1, then what each step but the last adds: as many entries as steps.
          guidance_weight: 1 is off; IF's usual ones are 7 and 4.
          low_res: low-resolution images in [-1, 1], enlarged here (bilinear, corners aligned).
          low_res_noise: noises them.
          noise_level: integer time to which they are noised.

        Raises:
          UserError: as predict.
        """
        noise = jnp.asarray(noise, jnp.float32)
        times = self.scheduler.timesteps(noise.shape[0])
        levels = None
        if low_res is not None:
            if low_res_noise is None or noise_level is None or self.noising is None:
                raise UserError("low_res needs low_res_noise, noise_level and a stage with image_noising_scheduler/")
            if not 0 <= noise_level < self.noising.num_train_timesteps:
                raise UserError(
                    f"noise_level ({noise_level}) must be from 0 to {self.noising.num_train_timesteps - 1}; IF's is 250"
                )
            levels = np.full(noise.shape[1], noise_level)
            enlarged = enlarge(jnp.asarray(low_res, jnp.float32), noise.shape[2], noise.shape[3], "corners")
            noised = self.noising.add_noise(enlarged, jnp.asarray(low_res_noise), levels)
            low_res, levels = jnp.concatenate([noised, noised]), np.concatenate([levels, levels])
        both, z, trajectory = jnp.concatenate([jnp.asarray(null_text), jnp.asarray(text)]), noise[0], []
        channels = z.shape[-1]
        for i, t in enumerate(times):
            output = self.predict(jnp.concatenate([z, z]), int(t), both, low_res, levels)
            null, cond = jnp.split(output, 2)
            eps = null[..., :channels] + guidance_weight * (cond - null)[..., :channels]
            output = jnp.concatenate([eps, cond[..., channels:]], -1)
            last = i + 1 == len(times)
            z, _ = self.scheduler.step(
                output, z, int(t), -1 if last else int(times[i + 1]), jnp.zeros_like(z) if last else noise[i + 1]
            )
            trajectory.append(z)
        return jnp.stack(trajectory)


def load_if_stage(folder: str) -> IFStage:
    """Loads a DeepFloyd IF stage from a diffusers folder, one tensor at a time.

    Args:
      folder: holds unet/, scheduler/ and, for super-resolution, image_noising_scheduler/.

    Raises:
      UserError: a file is missing or damaged, a setting is not supported, or the tensors do not fit the config.
    """
    check_path("folder", folder)
    unet, file = os.path.join(folder, "unet"), os.path.join(folder, "unet", "config.json")
    settings = {"unet": _read(file)}
    config = if_config(file, settings["unet"])
    schedulers = {}
    for name in ("scheduler", "image_noising_scheduler") if config.noise_level else ("scheduler",):
        scheduler_file = os.path.join(folder, name, SCHEDULER_FILE)
        settings[name] = _read(scheduler_file)
        schedulers[name] = DiscreteDDPM.read(scheduler_file, settings[name])
    scheduler, noising = schedulers["scheduler"], schedulers.get("image_noising_scheduler")
    scheduler_file = os.path.join(folder, "scheduler", SCHEDULER_FILE)
    images = config.in_channels // (2 if noising else 1)
    outputs = images * (2 if scheduler.variance_type == "learned_range" else 1)
    if config.in_channels % (2 if noising else 1) or config.out_channels not in (images, 2 * images):
        raise UserError(f"{file}: in_channels ({config.in_channels}), out_channels ({config.out_channels}) do not pair")
    if config.out_channels < outputs:
        raise UserError(f"{scheduler_file} asks for a learned variance; {file} has out_channels {config.out_channels}")
    return IFStage(config, _load_params(unet, config), scheduler, noising, settings)


def _load_params(unet: str, config: IFUNetConfig) -> Any:
    file = os.path.join(unet, _PICKLED)
    if size_of(os.path.join(unet, WEIGHTS)) is None and size_of(file) is not None:
        raise UserError(
            f"{file} is pickled, and reading it could run code in it; expected {WEIGHTS}: download the safetensors"
        )
    arrays, adapter, shapes = SafetensorsArrays(unet, WEIGHTS), IFAdapter(), param_shapes(config)
    names = {path: adapter.foreign_name(path) for path in shapes}
    expected = {names[path]: foreign_shape(adapter, path, shape) for path, shape in shapes.items()}
    check_shapes(unet, expected, arrays.shapes)
    params = {}
    for path, name in names.items():
        array = arrays.read(name, (slice(None),) * len(expected[name]))
        check_finite(unet, name, array)
        params[path] = jnp.asarray(adapter.to_native(path, array), jnp.float32)
    return traverse_util.unflatten_dict(params)


def _read(file: str) -> Any:
    if size_of(file) is None:
        raise UserError(f"{file} is missing; give the folder of one IF stage in diffusers' form")
    try:
        return read_json(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}); download it again") from error
