"""Training steps of the demo's base stage with XLA's two families of CPU kernels, side by side.

    python -m benchmarks.cpu_kernels

Prints milliseconds a step (median of alternating rounds) and the ratio. Each family runs in a process of its
own, since XLA reads its flags once; the processes take turns, so a busy machine slows both alike.
"""

import statistics
import sys

from benchmarks import turns

FAMILIES = {"default": "", "without ynn": "--xla_cpu_experimental_ynn_fusion_type="}
ROUNDS, STEPS = 7, 10


def serve() -> None:
    """Compiles one step, then times STEPS of it for every line on stdin."""
    import jax
    import jax.numpy as jnp

    from imagen_jax.models.denoiser import Conditioning
    from imagen_jax.models.unet import UNet

    batch, size = 16, 16
    net = UNet(
        dim=32, dim_mults=(1, 2, 3), num_res_blocks=1, attention=("none", "none", "joint"),
        head_dim=32, emb_dim=256, text_dim=128,
    )  # fmt: skip
    z_t = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
    cond = Conditioning(
        text=jax.random.normal(jax.random.key(1), (batch, 24, 128)), text_mask=jnp.ones((batch, 24), bool)
    )
    log_snr = jnp.zeros(batch)
    params = jax.jit(net.init)(jax.random.key(2), z_t, log_snr, cond)
    step = jax.jit(jax.grad(lambda p: jnp.square(net.apply(p, z_t, log_snr, cond) - z_t).mean()))

    def some_steps() -> None:
        for _ in range(STEPS):
            jax.block_until_ready(step(params))

    turns.serve(some_steps)


def main() -> None:
    command = [sys.executable, "-m", "benchmarks.cpu_kernels", "serve"]
    environments = {name: {"XLA_FLAGS": flags} for name, flags in FAMILIES.items()}
    seconds = turns.take_turns(dict.fromkeys(FAMILIES, command), ROUNDS, environments)
    for name, values in seconds.items():
        each = [1e3 * value / STEPS for value in values]
        print(f"{name:12s} {statistics.median(each):7.1f} ms a step ({min(each):.1f} at best)")
    print(turns.ratio(seconds, *FAMILIES))


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
