"""Programs of clouds, replaced at the process boundary: what was called, and recorded answers to it."""

import re
import shlex

from ml_collections import ConfigDict

from launch.configs import gke_v5e, slurm_gpu, tpu_v4
from launch.jobs.job import Restarts
from launch.jobs.phases import read_phases
from launch.jobs.runner import Answer, Runner

RESTARTS = Restarts(max_restarts=2, wait_s=0)


def failed(err: str, code: int = 1) -> Answer:
    """An answer with an error."""
    return Answer(code, err=err)


class Transcript(Runner):
    """Answers in their order, each to a command that its pattern must be found in.

    Args:
      exchanges: pairs of a pattern and an answer.
    """

    def __init__(self, *exchanges: tuple[str, Answer]):
        self._left = list(exchanges)
        self.called: list[list[str]] = []
        self.given: list[str] = []

    def call(self, command, given=""):
        self.called.append(list(command))
        self.given.append(given)
        line = shlex.join(command)
        assert self._left, f"nothing is recorded for {line}"
        pattern, answer = self._left.pop(0)
        assert re.search(pattern, line), f"{pattern!r} was recorded, and this is called: {line}"
        return answer

    def verbs(self) -> list[str]:
        """The word that says what each command does: create, describe, …"""
        known = ("create", "describe", "delete", "ssh", "get", "logs")
        return [next(word for word in command if word in known) for command in self.called]

    def is_over(self) -> bool:
        """Tells if every recorded answer was asked for."""
        return not self._left


def config_for(launcher: str) -> ConfigDict:
    """A config of a launcher with its empty fields filled."""
    config = {"tpu_vm": tpu_v4, "gke": gke_v5e, "slurm": slurm_gpu}[launcher].get_config()
    config.out_dir = "gs://bucket/run" if launcher != "slurm" else "/shared/run"
    config.corpus_dir, config.t5_path, config.vocabulary = "gs://bucket/corpus", "gs://bucket/t5", "gs://bucket/v.model"
    if launcher == "tpu_vm":
        config.project, config.package = "mine", "gs://bucket/imagen_jax"
    elif launcher == "gke":
        config.image = "us-docker.pkg.dev/mine/imagen/imagen_jax:1"
    else:
        config.log_dir = "/shared/run/launch"
    return config


def phase_of(config: ConfigDict, name: str):
    """A phase of a config, by its name."""
    return next(phase for phase in read_phases(config) if phase.name == name)
