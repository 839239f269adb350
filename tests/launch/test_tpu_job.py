"""Queued resources of Cloud TPU: commands, recorded answers and what they lead to."""

import re
import shlex
import shutil
import subprocess

import pytest

from imagen_jax.errors import UserError
from launch import tpu_vm
from launch.jobs import remote
from launch.jobs.job import State, TryLaterError
from launch.jobs.runner import Answer, Runner
from launch.jobs.tpu_job import TpuJob
from launch.jobs.tpu_slices import find_slice
from tests.launch.gcloud import (
    ABSENT,
    DENIED,
    EXISTS,
    LOGGED_OUT,
    NOT_OFFERED,
    OK,
    PASSING,
    QUOTA,
    REFUSED,
    STOCKOUT,
    found,
    hosts,
    job_for,
)
from tests.launch.transcripts import RESTARTS, Transcript, config_for, failed, phase_of

# Commands


def created(**fields):
    script = fields.pop("slices", None)
    job = job_for(Transcript())
    if script:
        job._num_slices = script
    return job._create("us-central2-b", "S.sh") if not fields else job_for(Transcript(), **fields)._create("z", "S.sh")


def test_the_command_asks_for_the_machines_of_the_phase():
    assert shlex.join(created()) == (
        "gcloud compute tpus queued-resources create imagen-train-sr256 --project=mine --zone=us-central2-b "
        "--accelerator-type=v4-16 --runtime-version=tpu-ubuntu2204-base --node-id=imagen-train-sr256 --spot "
        "--scopes=https://www.googleapis.com/auth/cloud-platform --metadata-from-file=startup-script=S.sh --quiet"
    )


def test_flex_start_and_several_slices():
    flex = shlex.join(created(pricing="flex-start", max_run_duration="36h"))
    assert flex.startswith("gcloud alpha compute tpus queued-resources create ")
    assert "--provisioning-model=flex-start --max-run-duration=36h" in flex and "--spot" not in flex
    several = shlex.join(created(slices=3))
    assert "--node-count=3 --node-prefix=imagen-train-sr256" in several and "--node-id" not in several


@pytest.mark.parametrize(
    ("name", "gcloud", "hosts", "chips", "topology"),
    [
        ("v4-8", "v4-8", 1, 4, "2x2x1"),
        ("v4-256", "v4-256", 32, 4, "4x4x8"),
        ("v5p-8", "v5p-8", 1, 4, "2x2x1"),
        ("v5e-1", "v5litepod-1", 1, 1, "1x1"),
        ("v5e-16", "v5litepod-16", 4, 4, "4x4"),
        ("v6e-256", "v6e-256", 64, 4, "16x16"),
    ],
)
def test_slices(name, gcloud, hosts, chips, topology):
    one = find_slice(name)
    assert (one.accelerator_type, one.hosts, one.chips_per_host, one.topology) == (gcloud, hosts, chips, topology)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"project": ""}, r"project is empty.*--config\.project="),
        ({"package": ""}, "what the hosts install"),
        ({"pricing": "cheap"}, r"--config\.pricing \('cheap'\) must be one of"),
        ({"machines": {"sr256": {"accelerator": "v9-8", "num_slices": 1}}}, "'v9-8'.*not known"),
        ({"machines": {"sr256": {"accelerator": "tpu7x-8", "num_slices": 1}}}, "GKE alone"),
        ({"machines": {"sr256": {"accelerator": "v4-8", "num_slices": 0}}}, "num_slices"),
        ({"machines": {}}, "'sr256', which config.machines does not have"),
    ],
)
def test_configs_that_cannot_be_are_refused_before_anything_is_asked_for(fields, message):
    config = config_for("tpu_vm")
    with config.unlocked():
        for name, value in fields.items():
            config[name] = value
    with pytest.raises(UserError, match=message):
        TpuJob(config, phase_of(config, "train_sr256"), RESTARTS, Transcript())


def test_a_phase_of_one_process_wants_one_host():
    config = config_for("tpu_vm")
    config.machines.small.accelerator = "v4-16"
    with pytest.raises(UserError, match="2 hosts.*must be one host for phase draw.*imagen_jax sample"):
        TpuJob(config, phase_of(config, "draw"), RESTARTS, Transcript())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
@pytest.mark.parametrize("pricing", ["spot", "flex-start", "reserved"])
def test_gcloud_itself_knows_every_flag(pricing):
    class Recorder(Runner):
        called = []

        def call(self, command, given=""):
            self.called.append(list(command))
            return {"describe": found("ACTIVE"), "ssh": hosts()}.get(command[4], OK)

    runner = Recorder()
    job = job_for(runner, pricing=pricing)
    job.submit(), job.status(), job.logs(), job.cancel()
    for command in {tuple(word.split("=")[0] for word in command) for command in runner.called}:
        words = [word for word in command if not word.startswith("--")]
        shown = subprocess.run(
            [*words[: words.index("queued-resources") + 2], "--help"], capture_output=True, text=True
        )
        text = re.sub(r"\x1b\[[0-9;]*m", "", shown.stdout)
        for flag in [word for word in command if word.startswith("--")]:
            assert re.search(rf"{flag}\b", text), f"{flag} of {' '.join(words)}"


# Recorded answers


@pytest.mark.parametrize(
    ("answers", "state", "reason"),
    [
        ([ABSENT], State.ABSENT, ""),
        ([found("WAITING_FOR_RESOURCES")], State.WAITING, "WAITING_FOR_RESOURCES in us-central2-b"),
        ([found("PROVISIONING")], State.WAITING, "PROVISIONING"),
        ([found("SUSPENDED")], State.LOST, "preempted"),
        ([found("SUSPENDING")], State.WAITING, "SUSPENDING"),
        ([found("FAILED", failedData={"error": {"message": "no more capacity"}})], State.LOST, "stockout"),
        ([found("FAILED", failedData={"error": {"message": "bad request"}})], State.FAILED, "bad request"),
        ([PASSING], State.RUNNING, "not known"),
        ([found("ACTIVE"), REFUSED], State.RUNNING, "cannot be asked now"),
        ([found("ACTIVE"), hosts("imagen_jax running a", "imagen_jax running b")], State.RUNNING, "on 2 of 2 hosts"),
        ([found("ACTIVE"), hosts("imagen_jax ended 0 50 a", "imagen_jax running b")], State.RUNNING, "on 1 of 2"),
        ([found("ACTIVE"), hosts("imagen_jax ended 0 50 a", "imagen_jax ended 0 51 b")], State.DONE, ""),
        # The first to end was the cause.
        ([found("ACTIVE"), hosts("imagen_jax ended 134 60 a", "imagen_jax ended 1 50 b")], State.FAILED, "b ended"),
    ],
)  # fmt: skip
def test_states(answers, state, reason):
    patterns = ["describe .*--format=json", "ssh "]
    runner = Transcript(*zip(patterns, answers, strict=False))
    status = job_for(runner).status()
    assert status.state is state and reason in status.reason and runner.is_over()


@pytest.mark.parametrize(
    ("answer", "error", "line"),
    [
        (STOCKOUT, TryLaterError, "no such machines free"),
        (PASSING, TryLaterError, "does not answer"),
        (QUOTA, UserError, "quota does not allow it"),
        (NOT_OFFERED, UserError, "does not offer this accelerator"),
        (DENIED, UserError, "may not do this"),
        (LOGGED_OUT, UserError, "gcloud auth login"),
        (failed("Traceback: what is this?"), UserError, "failed with code 1"),
    ],
)
def test_each_error_is_one_line_and_leads_to_the_right_reaction(answer, error, line):
    with pytest.raises(error, match=line) as told:
        job_for(Transcript(("describe", ABSENT), ("create", answer))).submit()
    assert "\n" not in str(told.value) and "imagen-train-sr256 in us-central2-b" in str(told.value)


@pytest.mark.parametrize("answer", [STOCKOUT, QUOTA, NOT_OFFERED])
def test_what_one_zone_lacks_another_may_have(answer, capsys):
    runner = Transcript(
        ("describe .*zone=us-central2-b", ABSENT),
        ("describe .*zone=us-east5-a", ABSENT),
        ("create .*zone=us-central2-b", answer),
        ("create .*zone=us-east5-a", OK),
    )
    job_for(runner, other_zones=("us-east5-a",)).submit()
    assert runner.is_over() and "in us-central2-b: " in capsys.readouterr().out


def test_no_quota_in_one_zone_and_no_machines_in_the_other_waits():
    answers = [("describe", ABSENT), ("describe", ABSENT), ("create", STOCKOUT), ("create", QUOTA)]
    with pytest.raises(TryLaterError, match="stockout"):
        job_for(Transcript(*answers), other_zones=("us-east5-a",)).submit()


def test_one_that_exists_already_is_taken_over():
    job_for(Transcript(("describe", ABSENT), ("create", EXISTS))).submit()


def test_preempted_machines_are_replaced_by_new_ones():
    runner = Transcript(("describe", found("SUSPENDED")), ("delete .*--force", OK), ("create", OK))
    job_for(runner).submit()
    # Deleted to the end before: the name must be free.
    assert runner.verbs() == ["describe", "delete", "create"] and "--async" not in runner.called[1]


def test_cancelling_deletes_the_machines_once():
    runner = Transcript(("describe", found("ACTIVE")), ("delete .*--force --async", OK), ("describe", ABSENT))
    job = job_for(runner)
    job.cancel()
    job.cancel()
    assert runner.is_over()


def test_logs_are_those_of_the_first_host():
    runner = Transcript(
        ("describe", found("ACTIVE")), ("ssh .*--node=0 --worker=0 .*tail -n 40", Answer(0, out="step 7"))
    )
    assert job_for(runner).logs() == "step 7"


# The launcher


def test_a_cascade_is_one_job(tmp_path, monkeypatch, capsys):
    """Preempted once, short of machines once: captions, then three stages side by side, then pictures."""

    class Cloud(Runner):
        """Machines that exist for some looks; the base stage's are preempted once."""

        def __init__(self):
            self.machines, self.events = {}, []
            self.preempt, self.scarce = {"imagen-train-base"}, {"imagen-train-sr256"}

        def call(self, command, given=""):
            verb, name = command[4], command[5]
            if verb == "create":
                if name in self.scarce:
                    self.scarce.remove(name)
                    return STOCKOUT
                self.events.append(f"create {name}")
                self.machines[name] = 0
                return OK
            if name not in self.machines:
                return ABSENT
            if verb == "delete":
                self.events.append(f"delete {name}")
                del self.machines[name]
                return OK
            if verb == "ssh":
                num = {"imagen-train-base": 64, "imagen-train-sr256": 32, "imagen-train-sr1024": 32}.get(name, 1)
                return hosts(*(f"imagen_jax ended 0 {host} h{host}" for host in range(num)))
            self.machines[name] += 1
            if self.machines[name] < 3:
                return found("PROVISIONING")
            if name in self.preempt:
                self.preempt.remove(name)
                return found("SUSPENDED")
            return found("ACTIVE")

    monkeypatch.setattr(tpu_vm, "POLL_S", 0)
    monkeypatch.setattr(remote, "restarts_of", lambda config: RESTARTS)
    config = config_for("tpu_vm")
    config.out_dir = str(tmp_path)
    cloud = Cloud()
    assert tpu_vm.launch([config], "run", False, cloud) == 0
    at = {event: number for number, event in enumerate(cloud.events)}
    stages = [f"imagen-train-{stage}" for stage in ("base", "sr256", "sr1024")]
    assert at["delete imagen-cache-text"] < min(at[f"create {stage}"] for stage in stages)
    assert max(at[f"create {stage}"] for stage in stages) < at["create imagen-draw"]
    assert cloud.events.count("create imagen-train-base") == 2 and not cloud.machines
    told = capsys.readouterr().out
    assert "no such machines free (stockout)" in told and "preempted" in told and "imagen draw: done" in told
    # Given again, there is nothing left to do.
    assert tpu_vm.launch([config], "run", False, Transcript()) == 0


def test_a_dry_run_calls_nothing_and_shows_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t")
    config = config_for("tpu_vm")
    config.secrets = ("WANDB_API_KEY",)
    assert tpu_vm.launch([config], "run", True, Transcript()) == 0
    told = capsys.readouterr().out
    assert told.count("gcloud compute tpus queued-resources create") == 5 and "s3cr3t" not in told
    assert "# train_sr256, after cache_text" in told and "secrets versions access latest" in told


def test_status_and_cancel_ask_for_every_phase(capsys):
    config = config_for("tpu_vm")
    answers = [("describe", ABSENT)] * 4 + [("describe", found("WAITING_FOR_RESOURCES"))]
    assert tpu_vm.launch([config], "status", False, Transcript(*answers)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "draw: waiting: WAITING_FOR_RESOURCES in us-central2-b"
    runner = Transcript(*answers, ("delete", OK))
    assert tpu_vm.launch([config], "cancel", False, runner) == 0 and runner.is_over()
