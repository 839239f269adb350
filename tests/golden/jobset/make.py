"""Makes schema.json: what JobSet's and Kubernetes' API servers take of the fields that the launcher writes.

pip install kubernetes-validate==1.37.0 && python make.py
"""

import json
from pathlib import Path
from typing import Any

import kubernetes_validate

VERSION = "v1.31.0-local-strict"
# Whole in the schema; what these refer to besides is left open.
KEPT = (
    "io.k8s.api.batch.v1.JobTemplateSpec",
    "io.k8s.api.batch.v1.JobSpec",
    "io.k8s.api.batch.v1.PodFailurePolicy",
    "io.k8s.api.batch.v1.PodFailurePolicyRule",
    "io.k8s.api.batch.v1.PodFailurePolicyOnExitCodesRequirement",
    "io.k8s.api.core.v1.PodTemplateSpec",
    "io.k8s.api.core.v1.PodSpec",
    "io.k8s.api.core.v1.Container",
    "io.k8s.api.core.v1.EnvVar",
    "io.k8s.api.core.v1.EnvVarSource",
    "io.k8s.api.core.v1.SecretKeySelector",
    "io.k8s.api.core.v1.ResourceRequirements",
    "io.k8s.apimachinery.pkg.api.resource.Quantity",
    "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
)
KEYS = {"type", "properties", "required", "items", "additionalProperties", "enum", "oneOf", "$ref"}
TEXT, WHOLE, TRUTH = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}


def names(*values: str) -> dict[str, Any]:
    """A list of names, of some values only if any are given."""
    return {"type": "array", "items": {"type": "string", **({"enum": list(values)} if values else {})}}


def fields(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """An object with no other fields than these."""
    listed = {"required": list(required)} if required else {}
    return {"type": "object", "properties": properties, "additionalProperties": False, **listed}


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/definitions/{name}"}


# api/jobset/v1alpha2/jobset_types.go of kubernetes-sigs/jobset, commit 0336a8f: its fields and enumerations.
ACTIONS = [
    "FailJobSet",
    "RestartJobSet",
    "RestartJobSetAndIgnoreMaxRestarts",
    "RestartJob",
    "RestartJobAndIgnoreMaxRestarts",
]
RULE = fields(
    ("name", "action"),
    name=TEXT,
    action={"type": "string", "enum": ACTIONS},
    onJobFailureReasons=names(),
    onJobFailureMessagePatterns=names(),
    targetReplicatedJobs=names(),
)
JOB_SET = fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"type": "string", "enum": ["jobset.x-k8s.io/v1alpha2"]},
    kind={"type": "string", "enum": ["JobSet"]},
    metadata=ref("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"),
    spec=fields(
        suspend=TRUTH,
        ttlSecondsAfterFinished=WHOLE,
        network=fields(enableDNSHostnames=TRUTH, subdomain=TEXT, publishNotReadyAddresses=TRUTH),
        failurePolicy=fields(
            maxRestarts=WHOLE,
            restartStrategy={"type": "string", "enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
            rules={"type": "array", "items": RULE},
        ),
        replicatedJobs={
            "type": "array",
            "items": fields(
                ("name", "template"),
                name=TEXT,
                groupName=TEXT,
                replicas=WHOLE,
                template=ref("io.k8s.api.batch.v1.JobTemplateSpec"),
            ),
        },
    ),
)


def trimmed(node: Any, is_properties: bool = False) -> Any:
    """A schema without descriptions, and open where it refers to what is not kept."""
    if isinstance(node, list):
        return [trimmed(one) for one in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node and not is_properties:
        name = node["$ref"].split("/")[-1]
        return ref(name) if name in KEPT else {}
    kept = {key: value for key, value in node.items() if is_properties or key in KEYS}
    return {key: trimmed(value, key == "properties" and not is_properties) for key, value in kept.items()}


def main() -> None:
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / VERSION
    definitions = json.loads((folder / "_definitions.json").read_text())["$defs"]
    schema = {**JOB_SET, "definitions": {name: trimmed(definitions[name]) for name in KEPT}}
    Path(__file__).with_name("schema.json").write_text(json.dumps(schema, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
