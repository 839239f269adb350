"""The paper's cascade on GKE, on slices of TPU v5e that Kueue hands out; two slices for the base stage.

imagen_jax script launch/gke.py --config launch/configs/gke_v5e.py --config.image=IMAGE --config.out_dir=gs://B/run …
"""

from ml_collections import ConfigDict

from launch.configs import cascade


def get_config() -> ConfigDict:
    config = cascade.base_config()
    config.machines = cascade.tpu_machines(base="v5e-256", sr="v5e-128", small="v5e-4")
    config.machines.base.num_slices = 2
    config.image = ""
    config.namespace = "default"
    # A LocalQueue of Kueue in the namespace; empty where there is no Kueue.
    config.queue = "multislice-queue"
    # standard, spot or flex-start.
    config.pricing = "spot"
    config.service_account = ""
    # JobSet counts every restart there ever was, also those after a preemption.
    config.max_restarts = 100
    return config.lock()
