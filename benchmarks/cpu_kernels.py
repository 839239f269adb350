"""Training steps of the demo's base stage with XLA's two families of CPU kernels, side by side.

    python -m benchmarks.cpu_kernels

Prints milliseconds a step (median of alternating rounds) and the ratio. Each family runs in a process of its
own, since XLA reads its flags once; the processes take turns, so a busy machine slows both alike.
"""

import os
import statistics
import subprocess
import sys
import time

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
        dim=32, dim_mults=(1, 2, 3), num_res_blocks=1, attention=(False, False, True),
        head_dim=32, emb_dim=256, text_dim=128,
    )  # fmt: skip
    z_t = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
    cond = Conditioning(
        text=jax.random.normal(jax.random.key(1), (batch, 24, 128)), text_mask=jnp.ones((batch, 24), bool)
    )
    log_snr = jnp.zeros(batch)
    params = jax.jit(net.init)(jax.random.key(2), z_t, log_snr, cond)
    step = jax.jit(jax.grad(lambda p: jnp.square(net.apply(p, z_t, log_snr, cond) - z_t).mean()))
    jax.block_until_ready(step(params))
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(STEPS):
            jax.block_until_ready(step(params))
        print((time.perf_counter() - start) / STEPS, flush=True)


def main() -> None:
    command = [sys.executable, "-m", "benchmarks.cpu_kernels", "serve"]
    servers = {
        name: subprocess.Popen(
            command, env={**os.environ, "XLA_FLAGS": flags}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name, flags in FAMILIES.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in servers}
    for server in servers.values():
        assert server.stdout is not None
        server.stdout.readline()
    for number in range(ROUNDS):
        for name, server in servers.items():
            assert server.stdin is not None and server.stdout is not None
            print(number, file=server.stdin, flush=True)
            seconds[name].append(float(server.stdout.readline()))
    for server in servers.values():
        server.communicate()
    for name, values in seconds.items():
        print(f"{name:12s} {1e3 * statistics.median(values):7.1f} ms a step ({1e3 * min(values):.1f} at best)")
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    print(f"{' / '.join(seconds)}: {ratio:.2f}")


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
