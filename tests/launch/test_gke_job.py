"""JobSets: held to the schema of their API, words through Kubernetes' own expansion, recorded answers of kubectl."""

import json
import re
from pathlib import Path

import pytest
import yaml

from imagen_jax.errors import UserError
from launch import gke
from launch.jobs.gke_job import CONTAINER, GkeJob
from launch.jobs.job import State, TryLaterError
from launch.jobs.runner import Answer
from tests.launch.shells import check_shell
from tests.launch.test_words import ODD, as_bash_reads
from tests.launch.transcripts import RESTARTS, Transcript, config_for, failed, phase_of

SCHEMA = json.loads((Path(__file__).parents[1] / "golden" / "jobset" / "schema.json").read_text())
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "number": (int, float)}
OK = Answer(0)
NOT_FOUND = failed('Error from server (NotFound): jobsets.jobset.x-k8s.io "imagen-train-base" not found')


def problems(value, schema, where="JobSet"):
    """Where a value departs from a JSON schema, of the keywords that schema.json uses."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].split("/")[-1]]
    if "oneOf" in schema:
        found = [problems(value, one, where) for one in schema["oneOf"]]
        return [] if [] in found else found[0]
    kinds = schema.get("type", [])
    kinds = [kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind != "null"]
    if kinds and not any(isinstance(value, TYPES[kind]) for kind in kinds):
        return [f"{where}: {value!r} is no {kinds}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is none of {schema['enum']}"]
    if isinstance(value, list):
        return [one for item in value for one in problems(item, schema.get("items", {}), f"{where}[]")]
    if not isinstance(value, dict):
        return []
    found = [f"{where}.{name} is missing" for name in schema.get("required", []) if name not in value]
    known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    for name, item in value.items():
        if name not in known and others is False:
            found.append(f"{where}.{name} is unknown")
        else:
            found += problems(item, known.get(name, others), f"{where}.{name}")
    return found


def job_for(runner=None, phase="train_base", **fields):
    config = config_for("gke")
    for name, value in fields.items():
        config[name] = value
    return GkeJob(config, phase_of(config, phase), RESTARTS, runner or Transcript())


def written(job):
    """The JobSet as it is read from the YAML."""
    return yaml.safe_load(job.preview().split("\n", 1)[1].removesuffix("END"))


@pytest.mark.parametrize("phase", ["cache_text", "train_base", "draw"])
@pytest.mark.parametrize("pricing", ["standard", "spot", "flex-start"])
def test_the_yaml_fits_the_schema(phase, pricing):
    job = job_for(phase=phase, pricing=pricing, secrets=("WANDB_API_KEY",), service_account="trainer")
    assert problems(written(job), SCHEMA) == []


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("spec.failurePolicy.maxRestart", 3, "maxRestart is unknown"),
        ("spec.failurePolicy.maxRestarts", "3", "is no"),
        ("spec.failurePolicy.rules", [{"name": "x", "action": "Restart"}], "is none of"),
        ("spec.replicatedJobs", [{"name": "slice"}], "template is missing"),
        ("kind", "Job", "is none of"),
    ],
)
def test_the_schema_finds_mistakes(path, value, problem):
    manifest = written(job_for())
    *parents, last = path.split(".")
    owner = manifest
    for name in parents:
        owner = owner[name]
    owner[last] = value
    assert problem in problems(manifest, SCHEMA)[0]


def test_slices_hosts_and_queue():
    manifest = written(job_for())
    (slices,) = manifest["spec"]["replicatedJobs"]
    spec = slices["template"]["spec"]
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "multislice-queue"}
    # Two slices of 256 chips, four a host.
    assert (slices["replicas"], spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (2, 64, 64, 0)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert written(job_for(queue=""))["metadata"]["labels"] == {}


def test_errors_end_the_set_and_everything_else_starts_it_again():
    spec = written(job_for())["spec"]
    (rule,) = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["containerName"] == CONTAINER
    assert {1, 2} <= set(rule["onExitCodes"]["values"]) and not {0, 75, 137, 143} & set(rule["onExitCodes"]["values"])
    assert spec["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert spec["failurePolicy"]["maxRestarts"] == RESTARTS.max_restarts


def as_kubernetes_expands(text, variables):
    """Kubernetes' own expansion of a command: $(NAME) of known variables, $$ for one dollar."""
    return re.sub(
        r"\$\$|\$\((\w+)\)",
        lambda match: "$" if match[0] == "$$" else variables.get(match[1], match[0]),
        text,
    )


def test_every_word_survives_kubernetes_and_the_shell():
    values = [f"N{number}={word}" for number, word in enumerate([*ODD, "$(WANDB_API_KEY)", "$$(X)"])]
    command = written(job_for(overrides=tuple(values)))["spec"]["replicatedJobs"][0]["template"]["spec"]["template"][
        "spec"
    ]
    shell, flag, line = command["containers"][0]["command"]
    assert (shell, flag) == ("bash", "-c")
    line = as_kubernetes_expands(line, {"WANDB_API_KEY": "s3cr3t"})
    check_shell(line)
    assert [word for word in as_bash_reads(line) if word.startswith("--gin.N")][: len(values) + 1] == [
        f"--gin.{value}" for value in values
    ] + [word for word in as_bash_reads(line) if word.startswith("--gin.NUM")]


def test_secrets_come_from_the_cluster():
    job = job_for(secrets=("WANDB_API_KEY",))
    container = written(job)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    reference = {"secretKeyRef": {"name": "imagen-jax", "key": "WANDB_API_KEY"}}
    assert container["env"] == [{"name": "WANDB_API_KEY", "valueFrom": reference}]


def conditions(**more):
    """An answer of kubectl get jobset -o json."""
    return Answer(0, out=json.dumps({"metadata": {"name": "x"}, "spec": {}, **more}))


def ended(kind, **more):
    return conditions(status={"conditions": [{"type": kind, "status": "True", **more}]})


@pytest.mark.parametrize(
    ("answer", "state", "reason"),
    [
        (NOT_FOUND, State.ABSENT, ""),
        (conditions(spec={"suspend": True}), State.WAITING, "in queue multislice-queue"),
        (conditions(), State.WAITING, "0 of 2 slices ready"),
        (
            conditions(status={"restarts": 3, "replicatedJobsStatus": [{"ready": 2}]}),
            State.RUNNING,
            "restarted 3 times",
        ),
        (ended("Completed", reason="AllJobsCompleted"), State.DONE, ""),
        (ended("Failed", reason="FailJobSetAction", message="job x failed"), State.FAILED, "job x failed"),
        (ended("Failed", reason="ReachedMaxRestarts", message="m"), State.FAILED, "ReachedMaxRestarts"),
        (conditions(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}), State.WAITING, "being deleted"),
        (failed("Unable to connect to the server: dial tcp 1.2.3.4:443: i/o timeout"), State.RUNNING, "not known"),
    ],
)
def test_states(answer, state, reason):
    status = job_for(Transcript(("kubectl get jobset imagen-train-base --namespace=default -o json", answer))).status()
    assert status.state is state and reason in status.reason


@pytest.mark.parametrize(
    ("answer", "error", "line"),
    [
        (
            'error: resource mapping not found for name: "x" namespace: "default" from "STDIN": no matches for kind '
            '"JobSet" in version "jobset.x-k8s.io/v1alpha2"\nensure CRDs are installed first',
            UserError,
            "knows no JobSet; install it",
        ),
        ('Error from server (NotFound): namespaces "team" not found', UserError, "no such namespace"),
        (
            'Error from server (Forbidden): jobsets.jobset.x-k8s.io is forbidden: User "u" cannot create resource',
            UserError,
            "may not do this",
        ),
        ('Error from server (Forbidden): jobsets "x" is forbidden: exceeded quota: team', UserError, "quota"),
        ('Error from server (Invalid): JobSet "x" is invalid: spec: bad', UserError, "refuses it"),
        ("Unable to connect to the server: net/http: TLS handshake timeout", TryLaterError, "does not answer"),
        ("Error from server (TooManyRequests): please try again later", TryLaterError, "does not answer"),
    ],
)
def test_each_error_is_one_line_and_leads_to_the_right_reaction(answer, error, line):
    with pytest.raises(error, match=line) as told:
        job_for(Transcript(("kubectl create -f -", failed(answer)))).submit()
    assert "\n" not in str(told.value)


def test_one_that_exists_already_is_taken_over():
    exists = failed('Error from server (AlreadyExists): jobsets.jobset.x-k8s.io "imagen-train-base" already exists')
    runner = Transcript(("create", exists))
    job_for(runner).submit()
    assert problems(yaml.safe_load(runner.given[0]), SCHEMA) == []


def test_logs_and_cancelling():
    runner = Transcript(
        (
            r"kubectl logs --namespace=default --selector=jobset.sigs.k8s.io/jobset-name=imagen-train-base",
            Answer(0, "step 7"),
        ),
        ("kubectl delete jobset imagen-train-base --namespace=default --ignore-not-found --wait=false", OK),
    )
    job = job_for(runner)
    assert job.logs() == "step 7"
    job.cancel()
    assert runner.is_over()


def test_a_pipeline_runs_phase_after_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gke, "POLL_S", 0)
    config = config_for("gke")
    config.out_dir = str(tmp_path)
    config.phases = tuple(phase for phase in config.phases if phase[0] in ("cache_text", "train_base"))
    done = ended("Completed")
    runner = Transcript(
        ("get .*cache-text", NOT_FOUND), ("create", OK), ("get .*cache-text", done),
        ("get .*train-base", NOT_FOUND), ("create", OK), ("get .*train-base", done),
    )  # fmt: skip
    assert gke.launch([config], "run", False, runner) == 0 and runner.is_over()
    names = [yaml.safe_load(text)["metadata"]["name"] for text in runner.given if text]
    assert names == ["imagen-cache-text", "imagen-train-base"]


def test_a_dry_run_calls_nothing(capsys):
    assert gke.launch([config_for("gke")], "run", True, Transcript()) == 0
    assert capsys.readouterr().out.count("kind: JobSet") == 5
