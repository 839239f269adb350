"""Time of training steps with a checkpoint saved in the background, in the foreground, and with none.

    python -m benchmarks.saving [--steps 100] [--rounds 3] [--gin_file FILE]

The step of the demo's base stage, compiled, on one batch of random numbers. A round times `steps` updates of each kind
in turn, with one save at their first boundary, as a run with `save_every` = `steps` has; the time ends when the
checkpoint is whole. Processor time counts all threads of the process: other programs disturb it less.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from imagen_jax import gin_config
from imagen_jax.checkpoints import checkpoints, folders
from imagen_jax.sharding import rules
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.saving import Saver, SaveTimes
from imagen_jax.train.setup import TrainSetup
from imagen_jax.train.state import init_state, shardings_of
from imagen_jax.train.step import abstract_batch

KINDS = ("none", "background", "foreground")


def build(gin_file: str) -> tuple[Callable, object]:
    """An update of the stage that a gin file describes, and the state it begins with."""
    paths = {"CORPUS_DIR": "none", "STORE_DIR": "none", "MODEL_DIR": "none", "VOCABULARY_PATH": "bytes"}
    config = gin_config.load(TrainConfig, [gin_file], [f"{name}={value!r}" for name, value in paths.items()])
    setup = TrainSetup.build(config)
    compiled = setup.compile()
    spec = abstract_batch(setup.objective, config.batch_size, setup.mesh)
    placed = rules.batch_sharding(setup.mesh)
    batch = {
        name: jax.device_put(
            jnp.ones(leaf.shape, bool)
            if leaf.dtype == bool
            else jax.random.uniform(jax.random.key(0), leaf.shape).astype(leaf.dtype),
            placed,
        )
        for name, leaf in spec.items()
    }
    fresh = functools.partial(init_state, setup.objective, setup.settings.optimizer, 0)
    state = jax.jit(fresh, out_shardings=shardings_of(setup.state))()
    frozen = setup.load_frozen()
    return lambda state: compiled(state, batch, frozen)[0], state


def timed(update: Callable, state: object, kind: str, steps: int, model_dir: str) -> tuple[object, float, float]:
    """Does updates, with a save of one kind at the first; the state, and seconds of the wall and of processors."""

    def prepare(state):
        return functools.partial(checkpoints.save, model_dir, state, {}, {"config.gin": b""}, 1)

    saver = Saver(prepare, SaveTimes(every=steps), background=kind == "background")
    start, processor = time.perf_counter(), time.process_time()
    for number in range(steps):
        for _ in saver.boundary(state, saving=kind != "none" and number == 0, last=False):
            pass
        state = update(state)
        # As the loop does, whose lines keep the host from running ahead.
        jax.block_until_ready(state.step)
    saver.close()
    return state, time.perf_counter() - start, time.process_time() - processor


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gin_file", default="configs/experiments/demo_base.gin")
    args = parser.parse_args()
    update, state = build(args.gin_file)
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            state, *_ = timed(update, state, kind, 3, folder)
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for _ in range(args.rounds):
            for kind in KINDS:
                state, *seconds = timed(update, state, kind, args.steps, folder)
                found[kind].append(tuple(seconds))
                print(f"{kind}: {seconds[0]:.2f} s, processor {seconds[1]:.2f} s", flush=True)
        newest = folders.existing(folder, None)
        size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    print(f"a checkpoint: {size / 1e6:.1f} MB; medians of {args.rounds} rounds of {args.steps} updates")
    whole, processor = ([statistics.median(row[n] for row in found[kind]) for kind in KINDS] for n in (0, 1))
    for kind, wall, busy in zip(KINDS, whole, processor, strict=True):
        print(
            f"{kind:>10}: {1e3 * wall / args.steps:.1f} ms a step ({100 * (wall / whole[0] - 1):+.1f} %), "
            f"processor {1e3 * busy / args.steps:.1f} ms ({100 * (busy / processor[0] - 1):+.1f} %)"
        )
