"""The paper's cascade on Cloud TPU v4: 256 chips for the base stage, 128 for each of the others (section 4.1).

imagen_jax script launch/tpu_vm.py --config launch/configs/tpu_v4.py --config.project=P --config.out_dir=gs://B/run …
"""

from ml_collections import ConfigDict

from launch.configs import cascade


def get_config() -> ConfigDict:
    config = cascade.base_config()
    config.machines = cascade.tpu_machines(base="v4-512", sr="v4-256", small="v4-8")
    config.project = ""
    config.zone = "us-central2-b"
    # Where else to ask when the zone has no machines or no quota.
    config.other_zones = ()
    # standard, spot, reserved, or flex-start, which ends after max_run_duration.
    config.pricing = "spot"
    config.max_run_duration = "7d"
    config.runtime_version = "tpu-ubuntu2204-base"
    # What the hosts install: a container image, or a folder of a bucket with the wheel and constraints.txt.
    config.image = ""
    config.package = ""
    config.service_account = ""
    return config.lock()
