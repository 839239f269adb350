"""A job of Slurm: a script for sbatch, which waits in the queue for the jobs before it and queues itself again.

Slurm keeps the order and starts it again, so nobody need watch. Beside the log of a job lie its script, its number
(NAME.id) and, when it is over, how it ended (NAME.ended): Slurm itself forgets jobs after some minutes.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.files import write_text
from launch.jobs.job import Job, Restarts, State, Status, TryLaterError
from launch.jobs.phases import Phase, job_name
from launch.jobs.problems import SLURM, Reaction, understand
from launch.jobs.runner import Runner
from launch.jobs.scripts import IS_RETRYABLE

LOG_LINES = 40
# Before the time limit and when it is preempted, for a checkpoint.
SIGNAL_BEFORE_S = 120


class SlurmJob(Job):
    """One phase as a job of Slurm.

    Args:
      config: of the pipeline.
      phase: what it runs.
      restarts: how often it queues itself again.
      runner: calls sbatch, squeue and scancel.
    """

    def __init__(self, config: Mapping[str, Any], phase: Phase, restarts: Restarts, runner: Runner):
        super().__init__(job_name(config, phase), restarts)
        self._config, self._phase, self._runner = config, phase, runner
        if phase.machine not in config["machines"]:
            raise UserError(f"phase {phase.name} runs on {phase.machine!r}, which config.machines does not have")
        self._machine = config["machines"][phase.machine]
        if not config["log_dir"] or set(config["log_dir"]) & set(" %\n\"'\\"):
            raise UserError(
                f"--config.log_dir ({config['log_dir']!r}) must be a folder that all nodes see, with no spaces, quotes "
                "or % in its name"
            )
        self._folder = Path(os.path.abspath(config["log_dir"]))

    def script(self) -> str:
        """The script for sbatch."""
        config, machine = self._config, self._machine
        options = {
            "job-name": self.name,
            "nodes": machine["nodes"],
            "ntasks-per-node": machine["tasks_per_node"],
            "gpus-per-node": machine["gpus_per_node"],
            "partition": config["partition"],
            "account": config["account"],
            "time": config["time_limit"],
            "output": self._folder / f"{self.name}.log",
            "open-mode": "append",
            # To the tasks, which save a checkpoint and end with the code that queues the job again.
            "signal": f"TERM@{SIGNAL_BEFORE_S}",
        }
        lines = "".join(f"#SBATCH --{name}={value}\n" for name, value in options.items() if value not in ("", 0))
        tasks, ended = (shlex.quote(str(self._folder / f"{self.name}.{end}")) for end in ("tasks", "ended"))
        # Each task tells how it ended: srun's own code is the largest, which is that of tasks that were ended for it.
        # The signal goes to bash too, which waits for the command that saves a checkpoint.
        task = f'trap : TERM\n{self._phase.line()}\ncode=$?\necho "$(date +%s%N) $code" >>{tasks}\nexit "$code"'
        return f"""\
#!/usr/bin/env bash
{lines}#SBATCH --requeue
# Phase {self._phase.name} of {config["name"]}.
set -uo pipefail
{IS_RETRYABLE}
rm -f {tasks} {ended}
{config["setup"]}
srun bash -c {shlex.quote(task)}
code=$?
first=$(sort -n {tasks} 2>/dev/null | awk '$2 != 0 {{ print $2; exit }}')
code=${{first:-$code}}
if is_retryable "$code" && ((${{SLURM_RESTART_COUNT:-0}} < {self.restarts.max_restarts})); then
  echo "ended with code $code; queued again, after ${{SLURM_RESTART_COUNT:-0}} of {self.restarts.max_restarts} restarts"
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60 # Slurm ends this script; its own code must not count.
fi
echo "$code $(date +%s)" >{ended}
exit "$code"
"""

    def _sbatch(self, after: Sequence[str]) -> list[str]:
        waits = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
        return ["sbatch", "--parsable", *waits, str(self._folder / f"{self.name}.sbatch")]

    def preview(self) -> str:
        after = [f"ID_OF_{name}" for name in self._phase.after]
        script = self._folder / f"{self.name}.sbatch"
        return f"{shlex.join(self._sbatch(after))}\n# {script}:\n{self.script()}"

    @property
    def job_id(self) -> str:
        """Slurm's number of the job; "" if it was never submitted."""
        path = self._folder / f"{self.name}.id"
        return path.read_text().strip() if path.exists() else ""

    def submit(self, after: Sequence[Job] = ()) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{self.name}.ended").unlink(missing_ok=True)
        write_text(self._folder / f"{self.name}.sbatch", self.script())
        ids = [job.job_id for job in after if isinstance(job, SlurmJob)]
        answer = self._runner.call(self._sbatch(ids))
        if answer.code != 0:
            raise understand(answer, SLURM, f"submitting {self.name}").error()
        # "NUMBER", or "NUMBER;CLUSTER".
        write_text(self._folder / f"{self.name}.id", answer.out.strip().split(";")[0] + "\n")

    def status(self) -> Status:
        ended = self._folder / f"{self.name}.ended"
        if ended.exists():
            code = int(ended.read_text().split()[0])
            return Status(State.DONE) if code == 0 else Status(State.FAILED, f"ended with code {code}")
        if not self.job_id:
            return Status(State.ABSENT)
        answer = self._runner.call(["squeue", "--noheader", f"--jobs={self.job_id}", "--format=%T|%r"])
        if answer.code != 0:
            problem = understand(answer, SLURM, f"looking for {self.name}")
            if problem.reaction is Reaction.LATER:
                return Status(State.RUNNING, f"not known: {problem.line}")
            if problem.reaction is not Reaction.ABSENT:
                raise problem.error()
        state, _, reason = answer.out.strip().partition("|") if answer.code == 0 else ("", "", "")
        if not state:
            why = "it left the queue without an end: cancelled, never startable, or its node failed"
            return Status(State.FAILED, f"{why}; see {self._folder / self.name}.log")
        waiting = state in ("PENDING", "REQUEUED", "CONFIGURING", "SUSPENDED", "REQUEUE_HOLD")
        return Status(State.WAITING if waiting else State.RUNNING, f"{state}{waiting * f', {reason}'} ({self.job_id})")

    def logs(self) -> str:
        path = self._folder / f"{self.name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_LINES:]) if path.exists() else ""

    def cancel(self) -> None:
        if self.status().state in (State.RUNNING, State.WAITING):
            answer = self._runner.call(["scancel", self.job_id])
            if answer.code != 0:
                raise TryLaterError(understand(answer, SLURM, f"ending {self.name}").line)
