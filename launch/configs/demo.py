"""The demo: a corpus of drawn shapes, both stages trained, 64x64 samples, alignment measured, one page.

make demo        (imagen_jax script launch/local.py --config launch/configs/demo.py)
"""

from ml_collections import ConfigDict

from launch.configs import phases


def get_config() -> ConfigDict:
    config = phases.base_config("runs/demo", "configs/experiments/demo")
    config.num_train = 20_000
    config.num_val = 1_000
    config.brightness = "light_or_dark"
    config.phases = (
        (
            "corpus",
            "imagen_jax script data/build_shapes.py --out {out_dir}/corpus --seed {seed} --num_train {num_train}"
            " --num_val {num_val} --brightness {brightness}",
        ),
        phases.EMBEDDINGS,
        phases.train("base"),
        phases.train("sr"),
        (
            "sample",
            phases.SETTINGS + " imagen_jax sample --checkpoint {out_dir} --prompts_file data/prompts/demo.txt"
            " --output {out_dir}/samples --seed {seed} --overwrite",
        ),
        (
            "evaluate",
            phases.SETTINGS
            + " imagen_jax eval --num_processes=1 --gin_file={experiment}_eval.gin --gin.RUN_DIR={out_dir}",
        ),
        phases.REPORT,
    )
    return config.lock()
