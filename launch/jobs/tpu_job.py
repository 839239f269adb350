"""A job on TPU machines of Cloud TPU: a queued resource whose hosts set themselves up and run a phase.

The machines get a startup script, which every host runs at every boot: it installs, runs the phase, starts it again
where that helps and writes how it ended. So nothing here need be alive while it trains; only machines that were
preempted need somebody who asks for new ones.
"""

import json
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.errors import UserError
from launch.jobs.job import Job, Restarts, State, Status, TryLaterError, is_retryable
from launch.jobs.phases import Phase, job_name
from launch.jobs.problems import GCLOUD, Problem, Reaction, understand
from launch.jobs.runner import Answer, Runner
from launch.jobs.scripts import restarting
from launch.jobs.tpu_slices import slices_of

PRICINGS = ("standard", "spot", "flex-start", "reserved")
QUEUE = ["compute", "tpus", "queued-resources"]
# States of a queued resource: docs.cloud.google.com/tpu/docs/queued-resources.
WAITING = {"CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "SUSPENDING", "DELETING"}
GONE = "SUSPENDED"
# On every host; a variable only for tests, which have no such folder.
FOLDER = "${IMAGEN_JAX_FOLDER:-/var/lib/imagen_jax}"
_TELL = (
    f"d={FOLDER}; if [ -e $d/ended ]; then echo imagen_jax ended $(cat $d/ended) $(hostname); "
    "else echo imagen_jax running $(hostname); fi"
)
_ENDED = re.compile(r"^imagen_jax ended (\d+) (\d+) (\S+)\s*$", re.M)
_RUNNING = re.compile(r"^imagen_jax running (\S+)\s*$", re.M)
LOG_LINES = 40


class TpuJob(Job):
    """One phase on a queued resource of its own.

    Args:
      config: of the pipeline.
      phase: what it runs.
      restarts: of the program on its hosts; for machines the same waits.
      runner: calls gcloud.
    """

    def __init__(self, config: Mapping[str, Any], phase: Phase, restarts: Restarts, runner: Runner):
        super().__init__(job_name(config, phase), restarts)
        self._config, self._phase, self._runner = config, phase, runner
        self._slice, self._num_slices = slices_of(config, phase)
        self._num_hosts = self._slice.hosts * self._num_slices
        self._slice.accelerator_type  # noqa: B018 - refused here, before anything is asked for.
        if config["pricing"] not in PRICINGS:
            raise UserError(f"--config.pricing ({config['pricing']!r}) must be one of {', '.join(PRICINGS)}")
        self._zones = [config["zone"], *config["other_zones"]]
        for name in ("project", "zone", "out_dir"):
            if not config[name]:
                raise UserError(f"the config's {name} is empty; give --config.{name}=VALUE")
        if not (config["image"] or config["package"]):
            raise UserError(
                "nothing says what the hosts install; give --config.package=gs://BUCKET/FOLDER or --config.image=IMAGE"
            )

    # What is called

    def preview(self) -> str:
        script = f"{self.name}.sh"
        create = shlex.join(self._create(self._zones[0], script))
        return f"{create}\n# {script}, which every host runs when it boots:\n{self.startup_script()}"

    def _create(self, zone: str, script: str) -> list[str]:
        config = self._config
        flags = {
            "standard": [],
            "spot": ["--spot"],
            "reserved": ["--reserved"],
            "flex-start": ["--provisioning-model=flex-start", f"--max-run-duration={config['max_run_duration']}"],
        }[config["pricing"]]
        # Only the alpha command knows flex-start.
        track = ["alpha"] if config["pricing"] == "flex-start" else []
        nodes = [f"--node-id={self.name}"]
        if self._num_slices > 1:
            nodes = [f"--node-count={self._num_slices}", f"--node-prefix={self.name}"]
        account = [f"--service-account={config['service_account']}"] if config["service_account"] else []
        return [
            *("gcloud", *track, *QUEUE, "create", self.name),
            *(f"--project={config['project']}", f"--zone={zone}"),
            f"--accelerator-type={self._slice.accelerator_type}",
            f"--runtime-version={config['runtime_version']}",
            *nodes,
            *flags,
            *account,
            "--scopes=https://www.googleapis.com/auth/cloud-platform",
            f"--metadata-from-file=startup-script={script}",
            "--quiet",
        ]

    def _gcloud(self, verb: str, zone: str, *flags: str) -> Answer:
        place = [f"--project={self._config['project']}", f"--zone={zone}", "--quiet"]
        return self._runner.call(["gcloud", *QUEUE, verb, self.name, *place, *flags])

    def _ssh(self, zone: str, worker: str, command: str) -> Answer:
        return self._gcloud("ssh", zone, f"--node={worker}", f"--worker={worker}", f"--command={command}")

    def startup_script(self) -> str:
        """The script that every host runs when it boots, as root."""
        config, project = self._config, self._config["project"]
        secrets = [
            f'{name}="$(gcloud secrets versions access latest --secret={name} --project={shlex.quote(project)})"\n'
            f"export {name}"
            for name in config["secrets"]
        ]
        if config["image"]:
            passed = " ".join(f"-e {name}" for name in config["secrets"])
            words = ["--rm", "--privileged", "--network=host", *passed.split(), config["image"]]
            run = f"docker run {shlex.join(words)} bash -c {shlex.quote(self._phase.line())}"
            registry = shlex.quote(config["image"].split("/")[0])
            install = [
                f"gcloud auth configure-docker {registry} --quiet",
                f"try docker pull {shlex.quote(config['image'])}",
            ]
        else:
            run = self._phase.line()
            install = [
                f'try gcloud storage cp {shlex.quote(config["package"].rstrip("/") + "/*")} "$folder"',
                "try python3 -m pip install --quiet uv",
                'try python3 -m uv venv --quiet --clear --python 3.11 "$folder/venv"',
                'wheel=$(ls "$folder"/*.whl)',
                'try python3 -m uv pip install --quiet --python "$folder/venv" -c "$folder/constraints.txt" '
                '"imagen_jax[tpu] @ file://$wheel"',
            ]
        log = shlex.quote(f"{config['out_dir'].rstrip('/')}/launch/logs/{self.name}-")
        keep_log = "true"
        if config["out_dir"].startswith("gs://"):
            keep_log = f'gcloud storage cp "$folder/log" {log}"$(hostname).txt" --quiet'
        return f"""\
#!/usr/bin/env bash
# Phase {self._phase.name} of {config["name"]}.
set -uo pipefail
folder={FOLDER}
mkdir -p "$folder"
if [[ -e $folder/ended ]]; then exit 0; fi
exec >>"$folder/log" 2>&1
export HOME="${{HOME:-/root}}" PATH="$folder/venv/bin:$PATH"
cd "$folder" || exit 1
try() {{
  for pause in 5 10 20 40 0; do
    if "$@"; then return 0; fi
    sleep "$pause"
  done
  echo "cannot set up this host: $*"
  echo "1 $(date +%s)" >"$folder/ended"
  exit 1
}}
if [[ ! -e $folder/ready ]]; then
{_indented(install)}
  touch "$folder/ready"
fi
{"".join(line + chr(10) for line in secrets)}run() {{
  {run}
}}
{restarting("run", '"$folder/ended"', self.restarts, keep_log)}"""

    # Job

    def submit(self, after: Sequence[Job] = ()) -> None:
        self._delete_what_is_gone()
        problems: list[Problem] = []
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / f"{self.name}.sh"
            script.write_text(self.startup_script())
            for zone in self._zones:
                answer = self._runner.call(self._create(zone, str(script)))
                if answer.code == 0:
                    return
                problem = understand(answer, GCLOUD, f"creating {self.name} in {zone}")
                if problem.reaction is Reaction.ADOPT:
                    return
                problems.append(problem)
                if problem.reaction not in (Reaction.ELSEWHERE, Reaction.ELSEWHERE_ONLY):
                    raise problem.error()
                print(problem.line, flush=True)
        waits = [problem for problem in problems if problem.reaction is Reaction.ELSEWHERE]
        raise (waits or problems)[-1].error()

    def status(self) -> Status:
        try:
            found = self._find()
        except TryLaterError as error:
            return Status(State.RUNNING, f"not known: {error}")
        if found is None:
            return Status(State.ABSENT)
        zone, resource = found
        state = resource.get("state", {}).get("state", "")
        if state in WAITING:
            return Status(State.WAITING, f"{state} in {zone}")
        if state == GONE:
            return Status(State.LOST, f"{state} in {zone}: preempted, or its time is over")
        if state == "ACTIVE":
            return self._ask_hosts(zone)
        told = resource.get("state", {}).get("failedData", {}).get("error", {}).get("message", state)
        problem = understand(Answer(1, err=str(told)), GCLOUD, f"{self.name} in {zone}")
        waits = problem.reaction in (Reaction.ELSEWHERE, Reaction.LATER)
        return Status(State.LOST if waits else State.FAILED, problem.line)

    def logs(self) -> str:
        found = self._find()
        if found is None:
            return ""
        answer = self._ssh(found[0], "0", f"tail -n {LOG_LINES} {FOLDER}/log")
        return answer.out if answer.code == 0 else understand(answer, GCLOUD, f"reading the log of {self.name}").line

    def cancel(self) -> None:
        found = self._find()
        if found is not None:
            self._delete(found[0], "--async")

    def release(self) -> None:
        self.cancel()

    # Parts

    def _find(self) -> tuple[str, dict[str, Any]] | None:
        """Zone and description of the queued resource; None if there is none."""
        for zone in self._zones:
            answer = self._gcloud("describe", zone, "--format=json")
            if answer.code == 0:
                return zone, json.loads(answer.out)
            problem = understand(answer, GCLOUD, f"looking for {self.name} in {zone}")
            if problem.reaction is not Reaction.ABSENT:
                raise problem.error()
        return None

    def _delete(self, zone: str, *flags: str) -> None:
        answer = self._gcloud("delete", zone, "--force", *flags)
        problem = understand(answer, GCLOUD, f"deleting {self.name} in {zone}")
        if answer.code != 0 and problem.reaction is not Reaction.ABSENT:
            raise problem.error()

    def _delete_what_is_gone(self) -> None:
        """Makes room for a new queued resource: one that lost its machines keeps its name until it is deleted."""
        found = self._find()
        if found is not None and found[1].get("state", {}).get("state", "") in (GONE, "FAILED"):
            self._delete(found[0])

    def _ask_hosts(self, zone: str) -> Status:
        answer = self._ssh(zone, "all", _TELL)
        # The program of an ended host does not run; the order of their ends tells which one was the cause.
        ended = sorted((int(seconds), int(code), host) for code, seconds, host in _ENDED.findall(answer.out))
        bad = [(seconds, code, host) for seconds, code, host in ended if code]
        if bad:
            seconds, code, host = min(bad, key=lambda one: (one[0], is_retryable(one[1])))
            return Status(State.FAILED, f"host {host} ended with code {code}; its log is in OUT_DIR/launch/logs")
        if len(ended) == self._num_hosts:
            return Status(State.DONE)
        if answer.code != 0 and not _RUNNING.search(answer.out):
            return Status(State.RUNNING, "its hosts cannot be asked now, as while they boot")
        return Status(State.RUNNING, f"on {self._num_hosts - len(ended)} of {self._num_hosts} hosts in {zone}")


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
