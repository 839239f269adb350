"""A tiny run of two hosts under random faults, against one that nothing disturbed: `make soak`.

    python -m tests.faults.soak [--steps 5000] [--faults 10] [--seed 0]

At moments drawn from the seed one host is killed, stopped (SIGSTOP) or asked to end (SIGTERM); what is left must end by
itself, and both are started again. In the end parameters, average and optimizer state must be equal in both runs, bit
for bit.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from imagen_jax.checkpoints import checkpoints, folders
from imagen_jax.train.loop import TrainSetup
from tests.faults.hosts import Hosts
from tests.train import tiny_run

FAULTS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
# The heartbeat's 10 s, and a save.
END_S = 30


def undisturbed(folder: Path, counts: tuple[int, int]) -> float:
    """Runs to the end; seconds that it took."""
    began = time.monotonic()
    with Hosts(folder, "none", counts=counts) as hosts:
        codes = [hosts.wait(number, 36000) for number in (0, 1)]
        if codes != [0, 0]:
            raise SystemExit(f"hosts ended with {codes}: {hosts.said()}")
    return time.monotonic() - began


def disturbed(folder: Path, counts: tuple[int, int], fault: signal.Signals, victim: int, at_step: int) -> str:
    """Runs until a step, strikes, and waits for the end; what happened, in words."""
    with Hosts(folder, "none", counts=counts) as hosts:
        hosts.wait_for_lines(at_step)
        hosts.processes[victim].send_signal(fault)
        began = time.monotonic()
        code = hosts.wait(1 - victim, END_S)
        took = time.monotonic() - began
    saved = folders.latest_step(hosts.model_dir)
    return f"{fault.name} to {victim} after step {at_step}: the other ended with {code} in {took:.1f} s, saved {saved}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="updates of the run (default 5000)")
    parser.add_argument("--faults", type=int, default=10, help="how often a host fails (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    args = parser.parse_args()
    rng, counts = random.Random(args.seed), (args.steps, max(args.steps // 100, 2))
    with tempfile.TemporaryDirectory() as name:
        whole, struck = Path(name, "whole"), Path(name, "struck")
        for folder in (whole, struck):
            folder.mkdir()
        print(f"undisturbed: {undisturbed(whole, counts):.0f} s", flush=True)
        moments = sorted(rng.sample(range(2, args.steps * 9 // 10, 2), args.faults))
        for number, at_step in enumerate(moments, 1):
            told = disturbed(struck, counts, rng.choice(FAULTS), rng.randrange(2), at_step)
            print(f"{number}: {told}", flush=True)
        print(f"the rest: {undisturbed(struck, counts):.0f} s", flush=True)
        setup = TrainSetup.build(tiny_run.tiny_config(whole / "run"))
        one, two = (checkpoints.restore(folder / "run", setup.state, args.steps)[0] for folder in (whole, struck))
        same = tiny_run.leaves_equal(one, two)
        print(f"bit-equal: {same}", flush=True)
        sys.exit(not same)


if __name__ == "__main__":
    main()
