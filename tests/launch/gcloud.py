"""Jobs on Cloud TPU for tests, and answers of gcloud."""

import json

from launch.jobs.runner import Answer
from launch.jobs.tpu_job import TpuJob
from tests.launch.transcripts import RESTARTS, config_for, failed, phase_of

# Answers as gcloud prints them: canonical code and message after "ERROR: (command)".
CREATE, DESCRIBE = "ERROR: (gcloud.compute.tpus.queued-resources.create) ", "ERROR: (gcloud.compute.tpus.x) "
STOCKOUT = failed(
    'ERROR: (gcloud.compute.tpus.queued-resources.create) {\n  "code": 8,\n  "message": "There is no more capacity in '
    'the zone \\"us-central2-b\\"; you can try in another zone where Cloud TPU Nodes are offered (see '
    'https://cloud.google.com/tpu/docs/regions) [EID: 0x1bc8f9d790be9142]"\n}'
)
QUOTA = failed(
    CREATE + "RESOURCE_EXHAUSTED: Quota limit 'TPUV4sPreemptiblePodPerProjectPerZoneForTPUAPI' has been exceeded. "
    "Limit: 0 in zone us-central2-b."
)
NOT_OFFERED = failed(
    CREATE + "INVALID_ARGUMENT: Cloud TPU received a bad request. The requested accelerator configuration for "
    'accelerator type, "v4-512", could not be found in the zonal accelerator configurations for "us-central2-b".'
)
EXISTS = failed(
    CREATE + "ALREADY_EXISTS: Resource 'projects/mine/locations/us-central2-b/queuedResources/x' already exists"
)
DENIED = failed(CREATE + "PERMISSION_DENIED: Permission 'tpu.nodes.create' denied on 'projects/mine/locations/z'")
LOGGED_OUT = failed(CREATE + "You do not currently have an active account selected. Please run: $ gcloud auth login")
PASSING = failed(CREATE + "UNAVAILABLE: The service is currently unavailable.")
ABSENT = failed(
    DESCRIBE + "NOT_FOUND: Resource 'projects/mine/locations/us-central2-b/queuedResources/x' was not found"
)
REFUSED = failed("ssh: connect to host 34.1.2.3 port 22: Connection refused\n" + DESCRIBE + "[255]", code=255)
OK = Answer(0)


def found(state, **more):
    """An answer of describe."""
    return Answer(0, out=json.dumps({"name": "projects/mine/…", "state": {"state": state, **more}}))


def job_for(runner, phase="train_sr256", **fields):
    config = config_for("tpu_vm")
    config.machines.sr256.accelerator = "v4-16"  # Two hosts.
    for name, value in fields.items():
        config[name] = value
    return TpuJob(config, phase_of(config, phase), RESTARTS, runner)


def hosts(*lines, code=0):
    """An answer of ssh to all hosts, with what gcloud says around theirs."""
    return Answer(code, out="\n".join(["Using ssh batch size of 2", *lines, ""]), err="SSH: Attempting to connect")
