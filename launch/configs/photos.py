"""Ten photographs that come with Python packages, learned by a two-stage cascade and drawn from their captions.

make demo-photos        (imagen_jax script launch/local.py --config launch/configs/photos.py)
"""

from ml_collections import ConfigDict

from launch.configs import phases


def get_config() -> ConfigDict:
    config = phases.base_config("runs/photos", "configs/experiments/photos")
    config.phases = (
        ("corpus", "imagen_jax script data/build_photos.py --out {out_dir}/corpus"),
        phases.EMBEDDINGS,
        phases.train("base"),
        phases.train("sr"),
        (
            "evaluate",
            phases.SETTINGS
            + " imagen_jax eval --num_processes=1 --gin_file={experiment}_eval.gin --gin.RUN_DIR={out_dir}"
            " --gin.CORPUS_DIR={out_dir}/corpus",
        ),
        phases.REPORT,
    )
    return config.lock()
