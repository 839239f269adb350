"""The short demo at two learning rates and two batch sizes, one after the other on this machine.

imagen_jax script launch/sweep.py --config launch/configs/sweep_demo.py
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    # One of local, tpu_vm, gke, slurm; `pipeline` is a config of it, `settings` are FIELD=VALUE in that config.
    config.launcher = "local"
    config.pipeline = "launch/configs/demo_short.py"
    config.settings = ()
    config.out_dir = "runs/sweep"
    # Gin names and their values: every combination is a run, in OUT_DIR/0, OUT_DIR/1, …
    config.grid = (("LEARNING_RATE", (1e-3, 3e-3)), ("BATCH_SIZE", (16, 32)))
    return config.lock()
