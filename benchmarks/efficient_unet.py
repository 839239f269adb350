"""Guided sampling steps of a 64→256 stage: the Efficient U-Net beside the plain U-Net of as many parameters, in turn.

    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= python -m benchmarks.efficient_unet

The Efficient U-Net is the paper's with a quarter of the channels; the plain one has two residual blocks a level, as in
arXiv 2105.05233, and its channels are chosen for the same parameters. The paper reports 2 to 3 times more steps a
second (section 2.5).
"""

import json
import statistics
import subprocess
import sys
from typing import Any

from benchmarks import turns

ROUNDS, BATCH, SIZE, LOW_RES = 7, 1, 256, 64
TEXT_LENGTH, TEXT_DIM = 128, 512
NETWORKS = ("Efficient U-Net", "U-Net")


def stage_of(name: str) -> Any:
    """The stage with one of the two networks."""
    from imagen_jax.models.efficient_unet import EfficientUNet
    from imagen_jax.models.unet import UNet
    from imagen_jax.stage.spec import Stage

    shared: dict[str, Any] = {"attention": ("none", "none", "none", "joint"), "head_dim": 32, "text_dim": 128}
    if name == "U-Net":
        model: Any = UNet(dim=44, dim_mults=(1, 2, 4, 8), num_res_blocks=2, **shared)
    else:
        model = EfficientUNet(dims=(32, 64, 128, 256), num_res_blocks=(2, 4, 8, 8), skips="res_block", **shared)
    return Stage(
        name="sr",
        model=model,
        image_size=SIZE,
        low_res_size=LOW_RES,
        text_embed_dim=TEXT_DIM,
        max_text_length=TEXT_LENGTH,
    )


def worker(name: str, what: str) -> None:
    """Describes a network, or serves calls of it with and without text, as a guided sampling step makes them."""
    import jax
    import jax.numpy as jnp

    from imagen_jax.cost.flops import count_flops
    from imagen_jax.models.denoiser import Conditioning
    from imagen_jax.sharding.rules import unbox

    stage = stage_of(name)
    rows = 2 * BATCH
    params = unbox(jax.jit(stage.init)(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (rows, SIZE, SIZE, 3))
    cond = Conditioning(
        text=jax.random.normal(jax.random.key(2), (rows, TEXT_LENGTH, TEXT_DIM)),
        text_mask=jnp.arange(rows)[:, None] + jnp.zeros((1, TEXT_LENGTH), int) > 0,
        low_res=x,
        aug_level=jnp.zeros(rows),
    )

    def call(params: Any) -> Any:
        return stage.network(params)(x, jnp.zeros(rows), cond)

    if what == "describe":
        leaves = jax.tree.leaves(params)
        print(json.dumps({"params": sum(leaf.size for leaf in leaves), "flops": count_flops(call, params)}))
        return
    run = jax.jit(call)
    turns.serve(lambda: run(params).block_until_ready())


def main() -> None:
    programs = {name: [sys.executable, "-m", "benchmarks.efficient_unet", name] for name in NETWORKS}
    seconds = turns.take_turns({name: [*command, "serve"] for name, command in programs.items()}, ROUNDS)
    for name, command in programs.items():
        printed = subprocess.run([*command, "describe"], capture_output=True, text=True, check=True).stdout
        about = json.loads(printed.splitlines()[-1])
        print(
            f"{name:16s} {about['params'] / 1e6:.1f}M parameters, {about['flops'] / 1e9:.1f} GFLOP a step, "
            f"{1 / statistics.median(seconds[name]):.2f} steps/s"
        )
    print(turns.ratio(seconds, "U-Net", "Efficient U-Net"))


if __name__ == "__main__":
    worker(*sys.argv[1:]) if len(sys.argv) > 1 else main()
