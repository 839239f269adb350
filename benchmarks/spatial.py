"""One 1024x1024 image drawn by eight devices that share its height, beside one device: memory, and the difference.

    python -m benchmarks.spatial [--dims 32 64 128 256] [--size 1024] [--num_steps 2]

The stage has the shape of the paper's 256→1024 stage (cross-attention alone), narrower. The devices are virtual: eight
parts of one CPU. Memory is what the compiler assigns to one device's program: arguments, results and the most that is
alive at once.
"""

import argparse
import os

DEVICES = 8
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={DEVICES}"

from typing import Any  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from imagen_jax.models.efficient_unet import EfficientUNet  # noqa: E402
from imagen_jax.sampling.stage_sampler import DrawInputs, draw, image_keys  # noqa: E402
from imagen_jax.sharding.mesh import MeshConfig  # noqa: E402
from imagen_jax.sharding.rules import param_shardings, replicated, unbox  # noqa: E402
from imagen_jax.stage.guided import lay_out_steps  # noqa: E402
from imagen_jax.stage.sampling_config import SamplingConfig  # noqa: E402
from imagen_jax.stage.spec import Stage  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=(32, 64, 128, 256))
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--num_steps", type=int, default=2)
    args = parser.parse_args()
    levels = len(args.dims)
    model = EfficientUNet(
        dims=tuple(args.dims),
        num_res_blocks=(2,) * levels,
        attention=("none",) * (levels - 1) + ("cross",),
        text_dim=64,
    )
    stage = Stage(
        name="sr1024",
        model=model,
        image_size=256,
        low_res_size=64,
        full_size=args.size,
        text_embed_dim=64,
        max_text_length=16,
    )
    boxed = jax.jit(stage.init)(jax.random.key(0))
    # A fresh network's last layer is zero: it would hide every difference before it.
    leaves, tree = jax.tree.flatten(unbox(boxed))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    filled = [leaf + 0.02 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, filled)
    low = args.size // 4
    inputs = {
        "text": jax.random.normal(jax.random.key(2), (1, 16, 64)),
        "text_mask": jnp.ones((1, 16), bool),
        "low_res": jax.random.uniform(jax.random.key(3), (1, low, low, 3), minval=-1),
    }
    config = SamplingConfig(num_steps=args.num_steps, guidance_weight=3.0, aug_level=0.1)
    mesh = MeshConfig(data=1, spatial=DEVICES).build()
    one = _program(stage, config, params, inputs, None)
    eight = _program(stage, config, jax.device_put(params, param_shardings(boxed, mesh)), inputs, mesh)
    images, sizes = [], []
    for name, (compiled, call_args) in {"1 device": one, f"{DEVICES} devices": eight}.items():
        memory = compiled.memory_analysis()
        parts = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
        sizes.append(sum(parts))
        images.append(np.asarray(compiled(*call_args)))
        print(f"{name:10s} {sum(parts) / 2**20:8.1f} MiB a device ({parts[2] / 2**20:.1f} of them intermediate values)")
    print(f"memory a device: {sizes[1] / sizes[0]:.3f} of one device's")
    print(f"images differ by at most {abs(images[0] - images[1]).max():.2e}, in a range of {np.ptp(images[0]):.2f}")


def _program(stage: Stage, config: SamplingConfig, params: Any, inputs: dict[str, Any], mesh: Any) -> Any:
    table, settings = lay_out_steps(stage, config, (stage.draw_size, stage.draw_size), None)
    place = (lambda x: x) if mesh is None else (lambda x: jax.device_put(x, replicated(mesh)))
    keys, level = place(image_keys(0, jnp.arange(1))), place(jnp.float32(config.aug_level))
    table, arrays = jax.tree.map(lambda x: place(jnp.asarray(x)), (table, inputs))
    dynamic = (params, table, DrawInputs(level, keys, arrays["text"], arrays["text_mask"], arrays["low_res"]))
    return draw.lower(stage, settings, mesh, *dynamic).compile(), dynamic


if __name__ == "__main__":
    main()
