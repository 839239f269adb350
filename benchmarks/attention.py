"""Joint attention of an image and its text: ours beside `jax.nn.dot_product_attention`, in turn.

    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= python -m benchmarks.attention

Forward, and forward with the gradients of queries, keys and values; float32, 128 tokens and 64 channels a head, as at
the levels of a 64x64 base U-Net.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import turns
from imagen_jax.models.attention import softmax_attention

ROUNDS, TOKENS, WIDTH = 15, 128, 64
# Rows, positions, heads.
SHAPES = ((4, 1024, 2), (8, 1024, 2), (4, 256, 3), (4, 64, 4))


def library(query: Any, key: Any, value: Any, mask: Any) -> Any:
    """The same by the library."""
    return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None, :])


def ours(query: Any, key: Any, value: Any, mask: Any) -> Any:
    """What the networks use."""
    return softmax_attention(query, key, value, mask, jnp.float32)


def with_gradients(attention: Callable) -> Callable:
    """attention, and what flows back to its first three arguments."""
    return lambda *args: jax.vjp(lambda *leaves: attention(*leaves, args[3]), *args[:3])[1](args[0])


def main() -> None:
    for rows, positions, heads in SHAPES:
        keys = jax.random.split(jax.random.key(0), 3)
        lengths = (positions, positions + TOKENS, positions + TOKENS)
        arrays = [
            jax.random.normal(key, (rows, length, heads, WIDTH)) for key, length in zip(keys, lengths, strict=True)
        ]
        arguments = (*arrays, jnp.ones((rows, positions + TOKENS), bool))
        for how in ("forward", "with gradients"):
            change = with_gradients if how == "with gradients" else lambda attention: attention
            programs = {f.__name__: jax.jit(change(f)).lower(*arguments).compile() for f in (library, ours)}
            seconds: dict[str, list[float]] = {name: [] for name in programs}
            for _ in range(ROUNDS):
                for name, program in programs.items():
                    start = time.perf_counter()
                    jax.block_until_ready(program(*arguments))
                    seconds[name].append(time.perf_counter() - start)
            print(
                f"{rows} rows, {positions} positions, {heads} heads, {how}: {turns.ratio(seconds, 'library', 'ours')}"
            )


if __name__ == "__main__":
    main()
