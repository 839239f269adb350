"""The supervisor: order, restarts with their waits, machines that are lost, and what a failure leaves undone."""

import pytest

from imagen_jax.errors import UserError
from launch.jobs.job import Job, Restarts, State, Status, Supervisor, TryLaterError, is_retryable
from launch.jobs.phases import Phase

GOOD = [State.RUNNING, State.DONE]


class Script(Job):
    """A job that goes through states, one a look; each submission begins the next list.

    Args:
      runs: a list of states for each submission, or the exception that it raises.
      events: gets the name at every submission, with the time.
    """

    def __init__(self, name, runs, events, clock, restarts=None):
        super().__init__(name, restarts or Restarts(max_restarts=2, wait_s=10, max_wait_s=30, healthy_s=1000))
        self._runs, self._events, self._clock = list(runs), events, clock
        self._now, self.ended = [], []
        self.busy = 0

    def preview(self):
        return ""

    def submit(self, after=()):
        self._events.append((self.name, self._clock.time))
        run = self._runs.pop(0)
        if isinstance(run, Exception):
            raise run
        self._now = list(run)

    def status(self):
        return Status(self._now.pop(0) if len(self._now) > 1 else self._now[0]) if self._now else Status(State.ABSENT)

    def logs(self):
        return f"log of {self.name}"

    def cancel(self):
        self.ended.append("cancel")
        self._now = []

    def release(self):
        self.ended.append("release")
        if self.busy:
            self.busy -= 1
            raise TryLaterError("the service does not answer")


class Clock:
    time = 0.0

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds
        assert self.time < 10_000, "it never ends"


class World:
    """Pipelines of scripted jobs under a clock of their own."""

    def __init__(self):
        self.clock, self.events, self.marked, self.jobs = Clock(), [], [], {}

    def add(self, name, runs, after="", **options):
        phase = Phase(name=name, commands=(("x",),), after=tuple(after.split()))
        self.jobs[phase] = job = Script(name, runs, self.events, self.clock, **options)
        return job

    def run(self, done=()):
        supervisor = Supervisor(self.jobs, done=done, mark_done=self.marked.append, now=self.clock.now)
        return Supervisor.run_all([supervisor], 1, sleep=self.clock.sleep)

    def submitted(self):
        return [name for name, _ in self.events]


@pytest.fixture
def world():
    return World()


def test_each_starts_when_those_before_it_are_done_and_some_side_by_side(world):
    world.add("text", [GOOD])
    world.add("base", [[State.RUNNING] * 5 + [State.DONE]], "text")
    world.add("sr", [GOOD], "text")
    world.add("draw", [GOOD], "base sr")
    assert world.run() == 0
    times = dict(world.events)
    assert times["text"] < times["base"] == times["sr"] < times["draw"]
    assert world.marked == ["text", "sr", "base", "draw"]
    assert all(job.ended == ["release"] for job in world.jobs.values())


def test_what_was_done_before_is_not_run_again(world):
    world.add("text", [])
    world.add("base", [GOOD], "text")
    assert world.run(done=["text"]) == 0
    assert world.submitted() == ["base"]


def test_restarts_wait_longer_each_time_and_end(world, capsys):
    world.add("base", [[State.RUNNING, State.RETRY]] * 3)
    world.add("draw", [GOOD], "base")
    assert world.run() == 1
    times = [time for _, time in world.events]
    assert world.submitted() == ["base"] * 3
    assert 10 <= times[1] - times[0] <= 13 and 20 <= times[2] - times[1] <= 23
    told = capsys.readouterr().out
    assert "restart 2 of 2" in told and "failed: " in told and "log of base" in told
    assert "not started, since what they wait for failed: draw" in told


def test_a_run_that_worked_begins_the_count_anew(world):
    short, long = [State.RUNNING, State.RETRY], [State.RUNNING] * 1001 + [State.RETRY]
    world.add("base", [short, long, short, long, short, GOOD])
    assert world.run() == 0


def test_lost_machines_are_asked_for_again_as_often_as_it_takes(world, capsys):
    world.add("base", [[State.WAITING, State.RUNNING, State.LOST]] * 6 + [GOOD])
    assert world.run() == 0
    assert len(world.submitted()) == 7
    assert "machine lost" in capsys.readouterr().out


def test_a_submission_that_may_work_later_is_tried_again_and_another_is_not(world, capsys):
    world.add("base", [TryLaterError("no machines"), TryLaterError("no machines"), GOOD])
    world.add("sr", [UserError("no quota")])
    assert world.run() == 1
    assert world.submitted().count("base") == 3 and world.submitted().count("sr") == 1
    told = capsys.readouterr().out
    assert "base: no machines; again in 10 s" in told and "sr: failed: no quota" in told


def test_a_failure_leaves_the_others_alone(world):
    world.add("text", [GOOD])
    world.add("base", [[State.RUNNING, State.FAILED]], "text")
    world.add("sr", [[State.RUNNING] * 5 + [State.DONE]], "text")
    world.add("draw", [GOOD], "base sr")
    assert world.run() == 1
    assert world.marked == ["text", "sr"] and "draw" not in world.submitted()


def test_a_job_found_running_is_watched_and_not_started_again(world):
    job = world.add("base", [])
    job._now = list(GOOD)
    assert world.run() == 0 and world.submitted() == []


def test_a_failure_of_before_is_cleared_and_started_anew(world):
    job = world.add("base", [GOOD])
    job._now = [State.FAILED]
    assert world.run() == 0
    assert world.submitted() == ["base"] and job.ended == ["cancel", "release"]


def test_a_job_that_somebody_deletes_is_not_started_again(world, capsys):
    world.add("base", [[State.RUNNING, State.ABSENT]])
    assert world.run() == 1
    assert world.submitted() == ["base"] and "somebody deleted it" in capsys.readouterr().out


@pytest.mark.parametrize(("end", "code"), [(State.DONE, 0), (State.FAILED, 1)])
def test_machines_are_given_back_even_when_the_service_is_busy(world, end, code):
    job = world.add("base", [[State.RUNNING, end]])
    job.busy = 2
    assert world.run() == code and job.ended == ["release"] * 3


def test_codes_that_ask_for_a_restart():
    assert [code for code in (0, 1, 2, 75, 125, 126, 127, 130, 134, 137, 143, -9, -15) if is_retryable(code)] == [
        75, 134, 137, 143, -9, -15,
    ]  # fmt: skip
