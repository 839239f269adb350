"""A base U-Net's train step, guided sampling step and whole sampling beside imagen-pytorch's and diffusers', in turn.

    python -m venv .venv-peers
    .venv-peers/bin/pip install torch==2.13.0 diffusers==0.42.1 imagen-pytorch==2.1.0
    .venv-peers/bin/pip uninstall -y torchvision  # beside the CPU build of torch, which cannot load it
    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= python -m benchmarks.peers .venv-peers/bin/python [--compiled]

All three draw 64x64 images with text of 128 tokens, have (1, 2, 3, 4) x dim channels and attention in the three lower
levels, and take the same FLOPs for a forward pass, which is printed: two per multiply-add of matmuls and convolutions.
float32, as many threads as cores; the XLA flag is the one that `make demo` runs with. The peers run as they are
installed (eager), and with --compiled under torch.compile too. --bf16 computes in bfloat16 (the peers by autocast; on a
CPU without that flag, under which XLA lacks some of its matmuls), and --device cuda runs on a GPU (with torch and jax
for its CUDA), where ours is timed with cuDNN's attention besides:

    python -m benchmarks.peers .venv-peers/bin/python --device cuda --bf16 --compiled --dim 192 --batch 64
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from typing import Any

from benchmarks import turns

TEXT_LENGTH, TEXT_DIM, SIZE = 128, 512, 64
LOOP_STEPS = 16  # Of a whole sampling.
PEERS = ("imagen-pytorch", "diffusers")


def stage_of(dim: int, dtype: str = "float32", fused: bool = False) -> Any:
    """Our base stage of the peers' size; `fused` by cuDNN's attention."""
    import jax.numpy as jnp

    from imagen_jax.models.unet import UNet
    from imagen_jax.stage.spec import Stage

    attention = ("none", "joint", "joint", "joint")
    model = UNet(dim=dim, dim_mults=(1, 2, 3, 4), num_res_blocks=1, attention=attention, text_dim=4 * dim)
    model = dataclasses.replace(model, dtype=jnp.dtype(dtype), fused_attention=fused)
    return Stage(name="base", model=model, image_size=SIZE, text_embed_dim=TEXT_DIM, max_text_length=TEXT_LENGTH)


def ours(mode: str, dim: int, batch: int, dtype: str, attention: str, what: str) -> None:
    """Our worker: describes the network, or serves its steps."""
    import jax
    import jax.numpy as jnp

    from imagen_jax.cost.flops import count_flops
    from imagen_jax.diffusion import guidance, samplers, thresholding
    from imagen_jax.models.denoiser import Conditioning
    from imagen_jax.sampling.stage_sampler import SampleRows, image_keys, sample_stage
    from imagen_jax.sharding.rules import unbox
    from imagen_jax.stage.sampling_config import SamplingConfig
    from imagen_jax.train.config import OptimizerConfig

    # What describes the network counts the FLOPs of the own attention, as the peers' do.
    stage = stage_of(dim, dtype, attention == "fused" and what == "serve")
    params = unbox(jax.jit(stage.init)(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (batch, SIZE, SIZE, 3))
    text = jax.random.normal(jax.random.key(2), (batch, TEXT_LENGTH, TEXT_DIM))
    mask, log_snr = jnp.ones((batch, TEXT_LENGTH), bool), jnp.zeros(batch)
    cond = Conditioning(text=text, text_mask=mask)
    if what == "describe":
        flops = count_flops(lambda p: stage.network(p)(x, log_snr, cond), params)
        print(json.dumps({"params": sum(leaf.size for leaf in jax.tree.leaves(params)), "flops": flops}))
        return
    if mode == "train":
        optimizer = OptimizerConfig(name="adam", learning_rate=1e-4, warmup_steps=0).build()
        rows = {"x0": jnp.clip(x, -1, 1), "text": text, "text_mask": mask}

        def train(state: Any, step: Any) -> Any:
            rng = jax.random.fold_in(jax.random.key(3), step)
            (loss, _), grads = jax.value_and_grad(stage.loss, has_aux=True)(state[0], rows, rng)
            updates, opt_state = optimizer.update(grads, state[1], state[0])
            return (jax.tree.map(jnp.add, state[0], updates), opt_state), loss

        run, state, steps = jax.jit(train, donate_argnums=0), (params, optimizer.init(params)), iter(range(10**9))

        def step() -> None:
            nonlocal state
            state, loss = run(state, next(steps))
            loss.block_until_ready()
    elif mode == "loop":
        config = SamplingConfig(
            num_steps=LOOP_STEPS, sampler=samplers.DDPMSampler(), guidance_weight=5.0, percentile=95.0
        )
        seeds = iter(range(10**9))

        def step() -> None:
            keys = image_keys(next(seeds), jnp.arange(batch))
            sample_stage(stage, config, params, SampleRows(keys, text, mask)).block_until_ready()
    elif mode == "calls":
        call = jax.jit(lambda params, *inputs: stage.network(params)(*inputs))
        both = jax.tree.map(lambda a: jnp.concatenate([a, a]), (x, log_snr, cond))

        def step() -> None:
            for _ in range(LOOP_STEPS):
                call(params, *both).block_until_ready()
    else:
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, Conditioning(text=0 * text, text_mask=~mask))

        @jax.jit
        def sample(params: Any, x: Any, step: Any) -> Any:
            def predict(z_t: Any, log_snr: Any) -> samplers.Estimate:
                twice, log_snr_twice = jnp.concatenate([z_t, z_t]), jnp.concatenate([log_snr, log_snr])
                x0 = stage.estimate(stage.network(params)(twice, log_snr_twice, both), twice, log_snr_twice).x0
                x0 = guidance.guide(x0[:batch], x0[batch:], 5.0)
                return samplers.estimate_from_x0(thresholding.threshold(x0, "dynamic", 95.0), z_t, log_snr)

            noise = jax.random.normal(jax.random.fold_in(jax.random.key(4), step), x.shape)
            ends = samplers.Step(log_snr, log_snr + 0.01, log_snr - 0.01)
            return samplers.DDPMSampler().step(predict, x, ends, noise, x)[0]

        steps = iter(range(10**9))

        def step() -> None:
            sample(params, x, next(steps)).block_until_ready()

    turns.serve(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peers_python", help="interpreter of the environment that holds the peers")
    parser.add_argument("--mode", nargs="+", choices=("train", "sample", "loop"), default=("train", "sample"))
    parser.add_argument("--dim", default="64")
    parser.add_argument("--batch", default="4")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--compiled", action="store_true", help="the peers under torch.compile too")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    threads = str(len(os.sched_getaffinity(0)))
    dtype = "bfloat16" if args.bf16 else "float32"
    for mode in args.mode:

        def our(mode: str, attention: str = "own") -> list[str]:
            return [sys.executable, "-m", "benchmarks.peers", "ours", mode, args.dim, args.batch, dtype, attention]

        programs = {"imagen_jax": our(mode)}
        if args.device == "cuda" and args.bf16:
            programs["imagen_jax, cuDNN's attention"] = our(mode, "fused")
        if mode == "loop":
            programs["its network calls alone"] = our("calls")
        for peer in PEERS:
            for how in ("eager", "compiled") if args.compiled else ("eager",):
                programs[f"{peer}, {how}"] = [
                    args.peers_python, "-m", "benchmarks.peers_torch", peer, mode, args.dim, args.batch, dtype,
                    args.device, threads, how,
                ]  # fmt: skip
        described = {}
        for name, command in programs.items():
            printed = subprocess.run([*command, "describe"], capture_output=True, text=True, check=True).stdout
            described[name] = json.loads(printed.splitlines()[-1])
        # Threads that wait for their turn must sleep, not spin.
        environment = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": threads, "JAX_PLATFORMS": args.device}
        # All of them are on the device at once.
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        seconds = turns.take_turns(
            {name: [*command, "serve"] for name, command in programs.items()},
            args.rounds,
            dict.fromkeys(programs, environment),
        )
        print(
            f"{mode}, batch {args.batch}, {dtype}, {args.device}, {threads} threads"
            + (f", {LOOP_STEPS} steps" if mode == "loop" else "")
        )
        for name, values in seconds.items():
            median, about = statistics.median(values), described[name]
            # Backwards the work is twice that of the forward pass; a guided step is two of them.
            passes = {"train": 3, "sample": 2}.get(mode, 2 * LOOP_STEPS)
            print(
                f"  {name:29s} {about['params'] / 1e6:5.1f}M parameters, {about['flops'] / 1e9:6.1f} GFLOP forward, "
                f"{1e3 * median:7.1f} ms ({1e3 * min(values):.1f} at best), "
                f"{passes * about['flops'] / median / 1e12:.2f} TFLOP/s"
            )
        for name in programs:
            if name == "its network calls alone":
                print(f"  {turns.ratio(seconds, 'imagen_jax', name)}")
            elif name != "imagen_jax":
                print(f"  {turns.ratio(seconds, name, 'imagen_jax')}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["ours"]:
        ours(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
    else:
        main()
