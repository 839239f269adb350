"""The paper's cascade under Slurm: nodes of eight GPUs, one task a GPU.

imagen_jax script launch/slurm.py --config launch/configs/slurm_gpu.py --config.out_dir=/shared/run …
"""

from ml_collections import ConfigDict

from launch.configs import cascade


def get_config() -> ConfigDict:
    config = cascade.base_config()
    nodes = {"base": 8, "sr256": 4, "sr1024": 4, "small": 1}
    config.machines = ConfigDict(
        {name: {"nodes": number, "tasks_per_node": 8, "gpus_per_node": 8} for name, number in nodes.items()}
    )
    # One task: drawing is not split among processes.
    config.machines.small.update({"tasks_per_node": 1, "gpus_per_node": 1})
    config.partition = ""
    config.account = ""
    # Of a job; at its end it saves and queues itself again.
    config.time_limit = "1-00:00:00"
    # Scripts and logs, on a file system that all nodes see.
    config.log_dir = ""
    # Lines of bash before the command, such as `source …/bin/activate`.
    config.setup = ""
    config.max_restarts = 100
    return config.lock()
