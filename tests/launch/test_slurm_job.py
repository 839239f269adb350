"""Scripts for sbatch, and recorded answers of Slurm; test_slurm_real.py has Slurm itself."""

import pytest

from imagen_jax.errors import UserError
from launch import slurm
from launch.jobs.job import State, TryLaterError
from launch.jobs.runner import Answer
from launch.jobs.slurm_job import SlurmJob
from tests.launch.shells import check_shell
from tests.launch.transcripts import RESTARTS, Transcript, config_for, failed, phase_of


def config_in(tmp_path, **fields):
    config = config_for("slurm")
    config.out_dir, config.log_dir = str(tmp_path), str(tmp_path / "log")
    for name, value in fields.items():
        config[name] = value
    return config


def job_for(tmp_path, *exchanges, **fields):
    config = config_in(tmp_path, **fields)
    return SlurmJob(config, phase_of(config, "train_base"), RESTARTS, Transcript(*exchanges))


def test_the_script_asks_for_nodes_and_is_good_bash(tmp_path):
    script = job_for(
        tmp_path, partition="gpu", overrides=('NOTE=it\'s a="b" $(id)',), setup="module load cuda"
    ).script()
    check_shell(script)
    for line in ("nodes=8", "ntasks-per-node=8", "gpus-per-node=8", "partition=gpu", "signal=TERM@120", "requeue"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --account" not in script and "\nmodule load cuda\n" in script


def test_it_waits_for_the_jobs_before_it(tmp_path):
    first = job_for(tmp_path, ("sbatch --parsable .*imagen-train-base.sbatch", Answer(0, out="41;cluster\n")))
    first.submit()
    config = config_in(tmp_path)
    waits = "sbatch --parsable --dependency=afterok:41 --kill-on-invalid-dep=yes .*imagen-draw.sbatch"
    second = SlurmJob(config, phase_of(config, "draw"), RESTARTS, Transcript((waits, Answer(0, out="42\n"))))
    second.submit([first])
    assert (first.job_id, second.job_id) == ("41", "42")


@pytest.mark.parametrize(
    ("answer", "error", "line"),
    [
        ("sbatch: error: invalid partition specified: gpus", UserError, r"--config\.partition"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
         UserError, r"--config\.account"),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", UserError,
         "no such nodes"),
        ("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit)", UserError,
         "limits do not allow"),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
         TryLaterError, "does not answer"),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", TryLaterError,
         "does not answer"),
    ],
)  # fmt: skip
def test_each_error_is_one_line_and_leads_to_the_right_reaction(tmp_path, answer, error, line):
    with pytest.raises(error, match=line):
        job_for(tmp_path, ("sbatch", failed(answer))).submit()


@pytest.mark.parametrize(
    ("answer", "state", "reason"),
    [
        (Answer(0, out="PENDING|Resources\n"), State.WAITING, "PENDING, Resources"),
        (Answer(0, out="PENDING|Dependency\n"), State.WAITING, "Dependency"),
        (Answer(0, out="RUNNING|None\n"), State.RUNNING, "RUNNING (7)"),
        (Answer(0, out="\n"), State.FAILED, "left the queue without an end"),
        (failed("slurm_load_jobs error: Invalid job id specified"), State.FAILED, "left the queue without an end"),
        (failed("slurm_load_jobs error: Unable to contact slurm controller"), State.RUNNING, "not known"),
    ],
)
def test_states(tmp_path, answer, state, reason):
    job = job_for(tmp_path, ("sbatch", Answer(0, out="7\n")), ("squeue .*--jobs=7", answer))
    assert job.status().state is State.ABSENT
    job.submit()
    status = job.status()
    assert status.state is state and reason in status.reason
    (tmp_path / "log" / "imagen-train-base.ended").write_text("0 12\n")
    assert job.status().state is State.DONE


def test_only_what_is_open_is_submitted(tmp_path, capsys):
    config = config_in(tmp_path)
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "imagen-cache-text.ended").write_text("0 12\n")
    pending, after = Answer(0, out="PENDING|Priority\n"), "--dependency=afterok:7:8:9 "
    runner = Transcript(
        *(exchange for number in (7, 8, 9) for exchange in (
            (r"sbatch --parsable /", Answer(0, out=f"{number}\n")), ("squeue", pending),
        )),
        (f"sbatch --parsable {after}", Answer(0, out="10\n")), ("squeue", pending),
    )  # fmt: skip
    assert slurm.launch([config], "run", False, runner) == 0 and runner.is_over()
    assert capsys.readouterr().out.splitlines()[0] == "cache_text: done"


def test_cancelling_and_logs(tmp_path):
    job = job_for(
        tmp_path,
        ("sbatch", Answer(0, out="7\n")),
        ("squeue", Answer(0, out="RUNNING|None\n")),
        ("scancel 7", Answer(0)),
    )
    job.submit()
    (tmp_path / "log" / "imagen-train-base.log").write_text("\n".join(f"step {number}" for number in range(100)))
    assert job.logs().splitlines()[0] == "step 60"
    job.cancel()


@pytest.mark.parametrize("place", ["", "/shared/my runs", "/shared/50%", 'a"b'])
def test_places_that_sbatch_would_misread_are_refused(tmp_path, place):
    with pytest.raises(UserError, match=r"--config\.log_dir"):
        job_for(tmp_path, log_dir=place)
