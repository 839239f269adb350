"""Walks one caption to a picture, a step at a time, and shows what is there on the way.

    imagen_jax script docs/caption_to_picture.py "a red cube to the left of a blue sphere" --checkpoint runs/demo

Each row of the picture is one stage: the noise it begins with, x0_hat at some of its steps (the network's guess at
the finished image), and the result. `Cascade.sample` does the same, from other noise, in one compiled program; here
every step is a line of Python, so that each can be looked at.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion.noise_conditioning import corrupt
from imagen_jax.diffusion.samplers import Step
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.sampling.images import enlarge, sheet, to_uint8, write_png
from imagen_jax.sampling.loading import load_stages
from imagen_jax.stage.guided import GuidedDenoiser, lay_out_steps
from imagen_jax.text.encoder import TextEncoder


def draw(one, text, mask, low_res, rng, columns):
    """Draws one image with one stage.

    Args:
      one: the loaded stage.
      text, mask: [1, n, d] and [1, n], the caption's embeddings.
      low_res: [1, h, w, 3], the image of the stage below, or None for the base stage.
      rng: random key.
      columns: how many images to keep.

    Returns:
      `columns` images [h, w, 3] in [-1, 1]: the noise, x0_hat at some steps, and last the finished image.
    """
    stage, sampling = one.stage, one.sampling
    size = stage.draw_size
    cond = Conditioning(text=text, text_mask=mask)
    start_rng, aug_rng, step_rng = jax.random.split(rng, 3)
    if low_res is not None:
        # A super-resolution stage sees the small image enlarged, blurred by some noise, and is told how much.
        large = stage.upsample_low_res(low_res)
        aug_level = jnp.full((1,), sampling.aug_level)
        noisy = corrupt(large, jax.random.normal(aug_rng, large.shape), aug_level)
        size = large.shape[1]
        cond = cond.replace(low_res=noisy, aug_level=aug_level)

    # The table has one row a step: the noise levels it goes between, and how strongly it is guided.
    table, settings = lay_out_steps(stage, sampling, (size, size), None)
    network = jax.jit(stage.network(one.weights.on_devices(stage, None)))
    guided = GuidedDenoiser(stage=stage, settings=settings, network=network, cond=cond)
    num_steps = len(table.log_snr_t)

    z = jax.random.normal(start_rng, (1, size, size, 3))
    x0_before = jnp.zeros_like(z)
    seen = [z[0]]
    for i in range(num_steps):
        weight = jnp.asarray(table.guidance_weight[i])

        def predict(z_t, log_snr, weight=weight, x0_before=x0_before):
            # The network twice, with the caption and without; guided apart; clipped to what pixels can be.
            return guided.estimate(weight, x0_before, z_t, log_snr)

        ends = (table.log_snr_t[i], table.log_snr_s[i], table.log_snr_before[i])
        step = Step(*(jnp.full((1,), log_snr) for log_snr in ends))
        if i == num_steps - 1:
            x0_hat = jnp.clip(predict(z, step.log_snr_t).x0, -1, 1)  # the last x0_hat is the image
        else:
            noise = jax.random.normal(jax.random.fold_in(step_rng, i), z.shape)
            z, x0_hat = sampling.sampler.step(predict, z, step, noise, x0_before)
        x0_before = x0_hat
        seen.append(x0_hat[0])
    kept = np.linspace(0, num_steps, columns).round().astype(int)
    return [seen[i] for i in kept]


def walk(caption, checkpoint, output, seed=0, columns=8):
    """Draws `caption` with every stage of a trained cascade and writes all kept images as one PNG; returns them."""
    stages = load_stages(checkpoint)
    encoder = TextEncoder(stages[0].text)
    (tokens,) = encoder.tokenize([caption])
    text, mask = encoder.encode([caption])
    print(f"{caption!r}: {len(tokens)} tokens {tokens}; embeddings {text.shape}, {mask.sum()} of them real")

    rows, below = [], None
    for number, one in enumerate(stages):
        rng = jax.random.fold_in(jax.random.key(seed), number)
        images = draw(one, jnp.asarray(text), jnp.asarray(mask), below, rng, columns)
        below = images[-1][None]
        print(f"stage {one.stage.name!r}: {one.sampling.num_steps} steps, {below.shape[1]}x{below.shape[2]} pixels")
        rows.append([to_uint8(np.asarray(image)) for image in images])

    largest = rows[-1][-1].shape[0]
    shown = [enlarge(image, largest // image.shape[0]) for row in rows for image in row]
    write_png(output, sheet(shown, columns), {"prompt": caption, "seed": seed})
    print(output)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Show the steps from a caption to a picture.")
    parser.add_argument("caption")
    parser.add_argument("--checkpoint", default="runs/demo", help="trained cascade (default runs/demo)")
    parser.add_argument("--output", default="caption_to_picture.png", help="PNG file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--columns", type=int, default=8, help="images a row (default 8)")
    args = parser.parse_args()
    walk(args.caption, args.checkpoint, args.output, args.seed, args.columns)
