"""One process of a tiny run of several, with a fault planted in it: `python -m tests.faults.host MODEL_DIR FAULT`,
with NUM_STEPS and SAVE_EVERY where they matter.

Who it is among the processes is told by jax's variables. FAULT is NAME@STEP@PROCESS, or "none", or "planned": for the
devices that are left after "lost", a host that is killed and then dies as it starts.
"""

import argparse
import os
import signal
import sys
import time

from imagen_jax.checkpoints.folders import saved_steps
from imagen_jax.commands.parts.distributed import FLAGS, join_processes, leave_processes
from imagen_jax.errors import exit_code


def strike(name: str) -> None:
    """What the fault does to this process as it reads a batch."""
    if name in ("killed", "lost"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif name == "raises":
        raise RuntimeError("planted")
    elif name == "exits":
        os._exit(0)
    elif name == "sleeps":
        time.sleep(600)


def main() -> None:
    """Joins the others and trains, in the order of the console command: jax takes SIGTERM as it joins."""
    code = exit_code(train)
    leave_processes(code)
    sys.exit(code)


def train() -> None:
    """Trains with the others."""
    model_dir, fault, *counts = sys.argv[1:]
    lost = fault.startswith("lost") and os.environ.get("JAX_PROCESS_ID") == fault.split("@")[2]
    if lost and saved_steps(model_dir):
        strike("lost")
    join_processes(argparse.Namespace(**dict.fromkeys(FLAGS)))
    num_steps, save_every = map(int, counts or (400, 1000))
    name, *where = fault.split("@")
    step, process = map(int, where) if where else (-1, -1)
    me = int(os.environ.get("JAX_PROCESS_ID", "0"))
    from imagen_jax.commands.parts import training
    from imagen_jax.sharding.mesh import MeshConfig
    from imagen_jax.train import loop, setup
    from tests.train import tiny_run

    class Batches(tiny_run.TinyBatches):
        """Rows of this process; the fault strikes before its step's batch is given."""

        def __init__(self, config, *, batch_size, seed, start_step, rows=None, encoder=None):
            super().__init__(config, batch_size=batch_size, seed=seed, start_step=start_step)
            self._rows = rows

        def __next__(self):
            # So that a signal finds a step to strike in.
            time.sleep(0.05)
            if me == process and self._step == step:
                strike(name)
            if name == "poisons" and self._step == step:
                self.poison_steps = frozenset({step})
            return {key: value[self._rows] for key, value in super().__next__().items()}

    setup.BatchIterator = Batches
    loop.check_text = lambda config: tiny_run.TextEncoder(config.text)
    differs = name == "differs" and me == process
    config = tiny_run.tiny_config(model_dir, num_steps=num_steps, save_every=save_every)
    config = tiny_run.with_changes(config, watchdog_seconds=4)
    text = "TrainConfig.seed = 1\n" if differs else "TrainConfig.seed = 0\n"
    if name == "lost":
        config = tiny_run.with_changes(config, planned_devices=2)
    if name == "planned":
        config = tiny_run.with_changes(config, mesh=MeshConfig(data=1), accumulate_steps=2)
    if name == "poisons":
        config = tiny_run.with_changes(config, num_steps=step + 4)
    loop.hosts.data = lambda config, position: {"data": dict(position)}  # There is no store.
    training.run(config, text)


if __name__ == "__main__":
    main()
