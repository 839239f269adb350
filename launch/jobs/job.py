"""A job: one phase of a pipeline somewhere, and the loop that brings a whole pipeline of them to its end.

Every launcher implements `Job`. `supervise` starts a job when those before it are done, starts it again where that
helps, and keeps nothing but the names of finished phases: the same command, given again, finds the jobs where they are.
"""

import abc
import enum
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from imagen_jax.errors import INTERRUPTED, RETRY, UserError
from launch.jobs.phases import Phase

FAILED = 1


class State(enum.Enum):
    """A job's state; a reason in words comes with it."""

    ABSENT = "absent"  # Nobody submitted it.
    WAITING = "waiting"  # For machines, a queue, or another job.
    RUNNING = "running"
    RETRY = "to be started again"  # Its program asks for it, or a signal ended it.
    LOST = "machine lost"  # Preempted, or its time is over: no fault of the program.
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Status:
    """A job's state now, and in words why."""

    state: State
    reason: str = ""

    def __str__(self) -> str:
        return self.state.value + (f": {self.reason}" if self.reason else "")


class TryLaterError(Exception):
    """A submission that failed for now: the message says why in one line."""


def is_retryable(code: int) -> bool:
    """Tells if a program that ended with this code should be started again.

    That is the retry code, and death by a signal (128 + its number in a shell, negative in Python): a machine that
    goes away, or a peer that does. Errors, a user's Ctrl-C and commands that are not there would only come again.
    """
    return code == RETRY or code < 0 or (code > 128 and code != INTERRUPTED)


@dataclass(frozen=True)
class Restarts:
    """The number of times a job is started again, and the pauses before.

    Args:
      max_restarts: in a row, of runs that were shorter than `healthy_s`; >= 0.
      wait_s: seconds before the first; every further one waits twice as long.
      max_wait_s: seconds, at most.
      healthy_s: seconds after which a run counts as having worked, and the count begins anew.
    """

    max_restarts: int = 10
    wait_s: float = 10
    max_wait_s: float = 600
    healthy_s: float = 1800

    def wait(self, number: int) -> float:
        """Seconds before a restart, by its number from 1."""
        return min(self.wait_s * 2 ** min(number - 1, 30), self.max_wait_s)


class Job(abc.ABC):
    """One phase, as a launcher runs it.

    Args:
      name: as others see it.
      restarts: when it is started again.
    """

    def __init__(self, name: str, restarts: Restarts):
        self.name = name
        self.restarts = restarts

    @abc.abstractmethod
    def preview(self) -> str:
        """Commands and files that `submit` would use, exactly; calls nothing."""

    @abc.abstractmethod
    def submit(self, after: Sequence["Job"] = ()) -> None:
        """Starts it, or leaves it alone where it runs already.

        Args:
          after: jobs to wait for, where the launcher can leave that to a queue.

        Raises:
          TryLaterError: it cannot start now, but may later.
          UserError: it never will like this.
        """

    @abc.abstractmethod
    def status(self) -> Status:
        """Its state now."""

    @abc.abstractmethod
    def logs(self) -> str:
        """The last lines that it wrote."""

    @abc.abstractmethod
    def cancel(self) -> None:
        """Ends it and gives back what it holds; does nothing where it is not there."""

    def release(self) -> None:  # noqa: B027 - most jobs hold nothing when they have ended.
        """Gives back what it still holds after its end."""


class _Watched:
    """A job in a `Supervisor`: what was last said of it, and its restarts."""

    def __init__(self, phase: Phase, job: Job):
        self.phase, self.job = phase, job
        self.said = ""
        self.submitted = False
        self.running_since: float | None = None
        # Of the program, which are limited; and of all, whose waits grow.
        self.restarts = self.waits = 0
        self.again_at: float | None = None


class Supervisor:
    """Brings jobs to their end, each after those before it.

    Args:
      jobs: by phase.
      done: names of phases that were done before.
      mark_done: called with the name of each phase that gets done.
      title: before the name of a phase in what is said; "" for none.
      progress: whether to say what goes well, too.
      now: the clock; tests give their own.
    """

    def __init__(
        self,
        jobs: Mapping[Phase, Job],
        *,
        done: Sequence[str] = (),
        mark_done: Callable[[str], None] = lambda name: None,
        title: str = "",
        progress: bool = True,
        now: Callable[[], float] = time.monotonic,
    ):
        self._watched = [_Watched(phase, job) for phase, job in jobs.items() if phase.name not in done]
        self._done = {*done}
        self._failed: set[str] = set()
        self._mark_done, self._title, self._progress, self._now = mark_done, title, progress, now

    @staticmethod
    def run_all(supervisors: Sequence["Supervisor"], poll_s: float, sleep: Callable[[float], None] = time.sleep) -> int:
        """Runs the jobs of several side by side, to their end.

        Args:
          supervisors: each looks after one pipeline.
          poll_s: seconds between two looks.
          sleep: waiting; tests give their own.

        Returns:
          0, or 1 if one failed; jobs that do not wait for it were run all the same.
        """
        open_ones = list(supervisors)
        while open_ones := [one for one in open_ones if one.look()]:
            sleep(poll_s)
        return FAILED if any(one._failed for one in supervisors) else 0

    def look(self) -> bool:
        """Looks at every job once, and does what it needs.

        Returns:
          Whether there is more to wait for.
        """
        for one in self._watched:
            ended = one.phase.name in self._done | self._failed
            if not ended and set(one.phase.after) <= self._done:
                self._look_at(one)
        open_ones = [one.phase for one in self._watched if one.phase.name not in self._done | self._failed]
        more = any(not self._waits_for_failed(phase) for phase in open_ones)
        if open_ones and not more:
            names = ", ".join(phase.name for phase in open_ones)
            print(f"not started, since what they wait for failed: {names}", flush=True)
        return more

    def _waits_for_failed(self, phase: Phase) -> bool:
        after = {one.phase.name: one.phase for one in self._watched}
        return any(
            name in self._failed or (name in after and name not in self._done and self._waits_for_failed(after[name]))
            for name in phase.after
        )

    def _look_at(self, one: _Watched) -> None:
        if one.again_at is not None:
            if self._now() >= one.again_at:
                one.again_at = None
                self._submit(one)
            return
        status = one.job.status()
        if status.state is State.ABSENT:
            if one.submitted:
                self._fail(one, "somebody deleted it")
            else:
                self._submit(one)
        elif status.state is State.LOST:
            self._plan(one, str(status))
        elif status.state is State.RETRY:
            self._forget_if_healthy(one)
            one.restarts += 1
            if one.restarts > one.job.restarts.max_restarts:
                self._fail(one, f"{status.reason}, after {one.job.restarts.max_restarts} restarts; see its log")
            else:
                self._plan(one, f"{status.reason} (restart {one.restarts} of {one.job.restarts.max_restarts})")
        elif status.state is State.FAILED:
            if one.submitted or one.running_since is not None:
                self._fail(one, status.reason)
            else:  # Before this start, which may be because the cause is mended; once it is away it is absent.
                self._say(one, f"failed before ({status.reason}); starting anew")
                one.job.cancel()
        else:
            if self._progress:
                self._say(one, str(status))
            if status.state is State.RUNNING and one.running_since is None:
                one.running_since = self._now()
            if status.state is State.DONE and self._release(one):
                self._done.add(one.phase.name)
                self._mark_done(one.phase.name)

    def _forget_if_healthy(self, one: _Watched) -> None:
        if one.running_since is not None and self._now() - one.running_since >= one.job.restarts.healthy_s:
            one.restarts = one.waits = 0
        one.running_since = None

    def _plan(self, one: _Watched, why: str) -> None:
        self._forget_if_healthy(one)
        one.waits += 1
        wait = one.job.restarts.wait(one.waits)
        one.again_at = self._now() + wait
        self._say(one, f"{why}; again in {wait:.0f} s")

    def _submit(self, one: _Watched) -> None:
        try:
            one.job.submit()
        except TryLaterError as error:
            self._plan(one, str(error))
        except UserError as error:
            self._fail(one, str(error))
        else:
            one.submitted = True
            if self._progress:
                self._say(one, "submitted")

    def _fail(self, one: _Watched, why: str) -> None:
        self._say(one, f"failed: {why}")
        if one.submitted or one.running_since is not None:
            try:
                log = one.job.logs()
            except TryLaterError as error:
                log = str(error)
            if log:
                print(f"the end of its log:\n{log}", flush=True)
            if not self._release(one):
                return  # The next look comes here again.
        self._failed.add(one.phase.name)

    def _release(self, one: _Watched) -> bool:
        """Gives back what an ended job holds, which costs money; returns whether that went well."""
        try:
            one.job.release()
        except TryLaterError as error:
            print(f"{one.phase.name}: {error}; trying again", flush=True)
            return False
        return True

    def _say(self, one: _Watched, text: str) -> None:
        if text != one.said:
            print(f"{self._title and self._title + ' '}{one.phase.name}: {text}", flush=True)
            one.said = text
