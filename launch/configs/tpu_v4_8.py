"""A cascade of the 300M base stage on one host of Cloud TPU v4, in batches of 256: to see it all work before a pod.

imagen_jax script launch/tpu_vm.py --config launch/configs/tpu_v4_8.py --config.project=P --config.out_dir=gs://B/run …
"""

from ml_collections import ConfigDict

from launch.configs import cascade, tpu_v4


def get_config() -> ConfigDict:
    config = tpu_v4.get_config()
    config.name = "imagen-small"
    config.machines.update(cascade.tpu_machines(base="v4-8", sr="v4-8", small="v4-8"))
    config.mesh = "configs/mesh/fsdp.gin"
    config.stages.base.gin_files = ("configs/experiments/imagen_base_300m.gin",)
    config.overrides = ("BATCH_SIZE=256", "NUM_STEPS=100000")
    return config
