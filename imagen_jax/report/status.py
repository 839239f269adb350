"""The mode `status`: a run, or the stages of a cascade, in a few lines, from files of the run directory alone."""

import json
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from imagen_jax.checkpoints import folders, marks
from imagen_jax.errors import UserError, printable
from imagen_jax.files import LEASE_S, AnyPath, Lock, StrPath, as_path, files_under, is_remote, modified_at
from imagen_jax.train.ledger import CATEGORIES, LEDGER, Stretch, goodput, read_ledger, totals

# As the trainer names them; it loads jax, which a look at a run need not wait for.
METRICS, LOCK = "metrics.jsonl", "train.lock"

# Fields of a metrics line that count what went wrong, and what they are called.
TROUBLES = {"bad_records": "bad records", "skipped_steps": "skipped steps", "slow_process": "slow process"}


def status(run_dir: StrPath) -> str:
    """Tells how a run is doing.

    Args:
      run_dir: run directory of one stage, ten lines; or of a cascade, one line a stage.

    Raises:
      UserError: there is no run, or one of its files is damaged.
    """
    place = as_path(run_dir)
    if _is_run(place):
        return "\n".join(_lines(place))
    stages = [one for one in _folders(place) if _is_run(one)]
    if not stages:
        raise UserError(f"{run_dir} holds no run: no {METRICS} or {LEDGER}, there or in its folders; check the path")
    return "\n".join(_one_line(one) for one in stages)


def watch(run_dir: StrPath, poll_s: float) -> None:
    """Prints the status again and again until Ctrl-C.

    Args:
      run_dir: as of `status`.
      poll_s: seconds between two looks.

    Raises:
      UserError: as `status`, or seconds that are none.
    """
    if not 0 < poll_s < 86400:
        raise UserError(f"--poll ({poll_s:g}) must be a number of seconds above 0 and below a day, e.g. 10")
    while True:
        # A terminal shows the newest one alone.
        print(("\033[H\033[J" if sys.stdout.isatty() else "") + status(run_dir), flush=True)
        time.sleep(poll_s)


def state(run_dir: AnyPath, ledger: list[Stretch]) -> str:
    """Tells in words if a run is at work, and by whom.

    Args:
      run_dir: run directory of one stage.
      ledger: its lines.
    """
    holder = Lock(run_dir / LOCK).holder()
    if holder is not None and is_remote(run_dir) and time.time() - modified_at(run_dir / LOCK) > 2 * LEASE_S:
        holder = None  # A lease that nobody renews.
    if holder is not None and holder.runs is not False:
        sure = "" if holder.runs else ", as far as can be told from here"
        return f"trained by process {holder.process} on host {holder.host}{sure}"
    finished = marks.finished_step(run_dir)
    if finished is not None and finished == folders.latest_step(run_dir):
        return "done"
    if not ledger or ledger[-1].reason is None:
        return "not trained; its last process ended without a word: killed, or its machine was lost"
    return f"not trained; stopped by {ledger[-1].reason}"


def _lines(run_dir: AnyPath) -> Iterator[str]:
    ledger, line = read_ledger(run_dir), _last_line(run_dir)
    now = time.time()
    yield f"run         {printable(str(run_dir))}"
    yield f"state       {printable(state(run_dir, ledger))}"
    yield f"step        {_progress(ledger, line)}"
    rate = _rate(line)
    yield f"rate        {f'{rate:.3g} updates/s, {_left(ledger, line, rate)}' if rate else 'not known yet'}"
    yield f"loss        {_number(line.get('loss'))}"
    yield f"data wait   {_wait(line)}"
    yield f"checkpoint  {_checkpoints(run_dir, now)}"
    yield f"goodput     {_goodput(ledger)}"
    yield f"trouble     {_troubles(line)}"
    ends = [one for one in ledger if one.reason is not None]
    told = f"{datetime.fromtimestamp(ends[-1].end):%Y-%m-%d %H:%M:%S}, {ends[-1].reason}" if ends else "none"
    yield f"last end    {printable(told)}"


def _one_line(run_dir: AnyPath) -> str:
    ledger, line = read_ledger(run_dir), _last_line(run_dir)
    rate = _rate(line)
    parts = [_progress(ledger, line), state(run_dir, ledger), f"loss {_number(line.get('loss'))}"]
    if rate:
        parts.append(f"{rate:.3g} updates/s, {_left(ledger, line, rate)}")
    return printable(f"{run_dir.name}: {'; '.join(parts)}")


def _is_run(place: AnyPath) -> bool:
    return (place / METRICS).exists() or (place / LEDGER).exists()


def _folders(place: AnyPath) -> list[AnyPath]:
    if is_remote(place):
        names = {name.split("/")[0] for name in files_under(place) if "/" in name}
        return [place / name for name in sorted(names)]
    return sorted(entry for entry in place.iterdir() if entry.is_dir()) if place.is_dir() else []


def _last_line(run_dir: AnyPath) -> dict[str, Any]:
    """Newest whole line of metrics; {} where there is none."""
    path = run_dir / METRICS
    for text in reversed(path.read_bytes().split(b"\n") if path.exists() else []):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            return line
    return {}


def _value(line: dict[str, Any], name: str) -> int | float | None:
    value = line.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "not known yet"


def _rate(line: dict[str, Any]) -> float | None:
    step_s = _value(line, "step_time_s")
    return 1 / step_s if step_s else None


def _steps(ledger: list[Stretch], line: dict[str, Any]) -> tuple[int, int | None]:
    done = max(int(_value(line, "step") or 0), ledger[-1].step if ledger else 0)
    return done, ledger[-1].num_steps if ledger else None


def _progress(ledger: list[Stretch], line: dict[str, Any]) -> str:
    done, of = _steps(ledger, line)
    return f"{done} of {of} ({done / of:.1%})" if of else f"{done}"


def _left(ledger: list[Stretch], line: dict[str, Any], rate: float) -> str:
    done, of = _steps(ledger, line)
    return f"{duration(max(0, of - done) / rate)} left" if of else "end not known"


def _wait(line: dict[str, Any]) -> str:
    data_s, step_s = _value(line, "data_s"), _value(line, "step_time_s")
    return f"{data_s / step_s:.1%} of an update" if data_s is not None and step_s else "not known yet"


def _checkpoints(run_dir: AnyPath, now: float) -> str:
    step = folders.latest_step(run_dir)
    if step is None:
        return "none yet"
    best = marks.best_step(run_dir)
    age = max(0.0, now - modified_at(folders.checkpoint_dir(run_dir, step) / folders.DIGESTS))
    return f"step {step}, {duration(age)} old" + (f"; the best: step {best}" if best is not None else "")


def _goodput(ledger: list[Stretch]) -> str:
    if not ledger:
        return "not known yet"
    seconds = totals(ledger)
    wall = max(sum(seconds.values()), 1e-9)
    others = [f"{name} {seconds[name] / wall:.1%}" for name in CATEGORIES if name != "step" and seconds[name] > 0]
    return f"{goodput(seconds):.1%} of {duration(wall)}" + (f" ({', '.join(others)})" if others else "")


def _troubles(line: dict[str, Any]) -> str:
    found = [f"{told} {line[name]}" for name, told in TROUBLES.items() if _value(line, name) is not None]
    return ", ".join(found) or "none"


def duration(seconds: int | float) -> str:
    """Seconds in words of two units, e.g. "3 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
