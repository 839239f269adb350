"""A job on TPU slices of Google Kubernetes Engine: one JobSet, whose jobs are slices and whose pods are hosts.

Kueue admits it where a queue is named. JobSet starts all of it again when a pod fails, unless by an exit code that
would only come again. Fields: the JobSet API v1alpha2 and batch/v1 of Kubernetes; GKE sets the variables by which jax
finds hosts and slices.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from imagen_jax.errors import INTERRUPTED, UserError
from launch.jobs.job import Job, Restarts, State, Status, TryLaterError
from launch.jobs.phases import Phase, job_name
from launch.jobs.problems import KUBECTL, Reaction, understand
from launch.jobs.runner import Runner
from launch.jobs.tpu_slices import slices_of

CONTAINER = "imagen-jax"
# The key of each secret variable in this Kubernetes Secret of the namespace is the variable's name.
SECRET = "imagen-jax"
# An error of the program, of the user, and commands that are not there: a restart would end alike.
FATAL_CODES = [1, 2, 125, 126, 127, INTERRUPTED]
PRICINGS: dict[str, dict[str, str]] = {
    "standard": {},
    "spot": {"cloud.google.com/gke-spot": "true"},
    "flex-start": {"cloud.google.com/gke-flex-start": "true"},
}
GRACE_S = 120  # For a checkpoint, when a pod is told to end.
LOG_LINES = 40


class GkeJob(Job):
    """One phase as a JobSet.

    Args:
      config: of the pipeline.
      phase: what it runs.
      restarts: of the JobSet, which counts all there ever were.
      runner: calls kubectl.
    """

    def __init__(self, config: Mapping[str, Any], phase: Phase, restarts: Restarts, runner: Runner):
        super().__init__(job_name(config, phase), restarts)
        self._config, self._phase, self._runner = config, phase, runner
        self._slice, self._num_slices = slices_of(config, phase)
        if config["pricing"] not in PRICINGS:
            raise UserError(f"--config.pricing ({config['pricing']!r}) must be one of {', '.join(PRICINGS)}")
        for name in ("image", "out_dir"):
            if not config[name]:
                raise UserError(f"the config's {name} is empty; give --config.{name}=VALUE")

    def manifest(self) -> dict[str, Any]:
        """The JobSet, as Kubernetes takes it."""
        config = self._config
        labels = {"kueue.x-k8s.io/queue-name": config["queue"]} if config["queue"] else {}
        # A rule of the pods turns these codes into a failure of the job with this reason, a rule of the set ends it.
        rule = {"name": "error", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
        codes = {"containerName": CONTAINER, "operator": "In", "values": FATAL_CODES}
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {
                "name": self.name,
                "namespace": config["namespace"],
                "labels": labels,
                # A slice is a node pool: each job gets one for itself.
                "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
            },
            "spec": {
                "failurePolicy": {"maxRestarts": self.restarts.max_restarts, "rules": [rule]},
                "replicatedJobs": [
                    {
                        "name": "slice",
                        "replicas": self._num_slices,
                        "template": {
                            "spec": {
                                "parallelism": self._slice.hosts,
                                "completions": self._slice.hosts,
                                "completionMode": "Indexed",
                                "backoffLimit": 0,
                                "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": codes}]},
                                "template": {"spec": self._pod()},
                            }
                        },
                    }
                ],
            },
        }

    def _pod(self) -> dict[str, Any]:
        config = self._config
        # Kubernetes puts variables in for $(NAME) in a command; $$ stands for one dollar there.
        line = self._phase.line().replace("$(", "$$(")
        container = {
            "name": CONTAINER,
            "image": config["image"],
            "command": ["bash", "-c", line],
            "env": [
                {"name": name, "valueFrom": {"secretKeyRef": {"name": SECRET, "key": name}}}
                for name in config["secrets"]
            ],
            "resources": {"limits": {"google.com/tpu": self._slice.chips_per_host}},
        }
        account = {"serviceAccountName": config["service_account"]} if config["service_account"] else {}
        return {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": GRACE_S,
            **account,
            "nodeSelector": {
                "cloud.google.com/gke-tpu-accelerator": self._slice.gke_label,
                "cloud.google.com/gke-tpu-topology": self._slice.topology,
                **PRICINGS[config["pricing"]],
            },
            "containers": [container],
        }

    def preview(self) -> str:
        text = yaml.safe_dump(self.manifest(), sort_keys=False, width=1_000_000)
        return f"kubectl create -f - <<'END'\n{text}END"

    def submit(self, after: Sequence[Job] = ()) -> None:
        text = yaml.safe_dump(self.manifest(), sort_keys=False)
        answer = self._runner.call(["kubectl", "create", "-f", "-"], given=text)
        if answer.code != 0:
            problem = understand(answer, KUBECTL, f"creating JobSet {self.name}")
            if problem.reaction is not Reaction.ADOPT:
                raise problem.error()

    def status(self) -> Status:
        answer = self._runner.call(["kubectl", "get", "jobset", self.name, *self._namespace(), "-o", "json"])
        if answer.code != 0:
            problem = understand(answer, KUBECTL, f"looking for JobSet {self.name}")
            if problem.reaction is Reaction.ABSENT:
                return Status(State.ABSENT)
            if problem.reaction is Reaction.LATER:
                return Status(State.RUNNING, f"not known: {problem.line}")
            raise problem.error()
        found = json.loads(answer.out)
        if "deletionTimestamp" in found.get("metadata", {}):
            return Status(State.WAITING, "being deleted")
        status = found.get("status", {})
        conditions = {one["type"]: one for one in status.get("conditions", []) if one.get("status") == "True"}
        if "Completed" in conditions:
            return Status(State.DONE)
        if "Failed" in conditions:
            failed = conditions["Failed"]
            return Status(State.FAILED, f"{failed.get('reason', '')}: {failed.get('message', '')}")
        restarts = status.get("restarts", 0)
        told = f", restarted {restarts} times" if restarts else ""
        if found.get("spec", {}).get("suspend"):
            return Status(State.WAITING, f"in queue {self._config['queue']}{told}")
        ready = sum(one.get("ready", 0) for one in status.get("replicatedJobsStatus", []))
        if ready < self._num_slices:
            return Status(State.WAITING, f"{ready} of {self._num_slices} slices ready{told}")
        return Status(State.RUNNING, f"on {self._num_slices} of {self._num_slices} slices{told}")

    def logs(self) -> str:
        first = (
            f"jobset.sigs.k8s.io/jobset-name={self.name},jobset.sigs.k8s.io/job-index=0,"
            "batch.kubernetes.io/job-completion-index=0"
        )
        answer = self._runner.call(
            ["kubectl", "logs", *self._namespace(), f"--selector={first}", f"--tail={LOG_LINES}"]
        )
        return answer.out if answer.code == 0 else understand(answer, KUBECTL, f"reading the log of {self.name}").line

    def cancel(self) -> None:
        words = ["kubectl", "delete", "jobset", self.name, *self._namespace(), "--ignore-not-found", "--wait=false"]
        answer = self._runner.call(words)
        if answer.code != 0:
            problem = understand(answer, KUBECTL, f"deleting JobSet {self.name}")
            raise problem.error() if problem.reaction is not Reaction.LATER else TryLaterError(problem.line)

    def _namespace(self) -> list[str]:
        return [f"--namespace={self._config['namespace']}"]
