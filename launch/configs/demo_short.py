"""The demo's pipeline in small: a few minutes that show every phase at work, not good pictures.

make demo-short        (imagen_jax script launch/local.py --config launch/configs/demo_short.py)
"""

from ml_collections import ConfigDict

from launch.configs import demo


def get_config() -> ConfigDict:
    config = demo.get_config()
    config.out_dir = "runs/demo_short"
    config.experiment = "configs/experiments/demo_short"
    config.num_train = 512
    config.num_val = 64
    return config
