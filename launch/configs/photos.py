"""Ten photographs that come with Python packages, learned by a two-stage cascade and drawn from their captions.

make demo-photos        (python -m launch.local --config launch/configs/photos.py)
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.out_dir = "runs/photos"
    config.experiment = "configs/experiments/photos"  # Followed by _base.gin, _sr.gin, _eval.gin.
    config.phases = (
        ("corpus", "python data/build_photos.py --out {out_dir}/corpus"),
        (
            "embeddings",
            "imagen_jax cache_text --gin_file={experiment}_base.gin --gin.CORPUS_DIR={out_dir}/corpus"
            " --gin.STORE_DIR={out_dir}/embeddings --gin.VOCABULARY_PATH={out_dir}/corpus/vocabulary.model",
        ),
        (
            "train_base",
            "imagen_jax train --gin_file={experiment}_base.gin --gin.CORPUS_DIR={out_dir}/corpus"
            " --gin.STORE_DIR={out_dir}/embeddings --gin.VOCABULARY_PATH={out_dir}/corpus/vocabulary.model"
            " --gin.MODEL_DIR={out_dir}/base",
        ),
        (
            "train_sr",
            "imagen_jax train --gin_file={experiment}_sr.gin --gin.CORPUS_DIR={out_dir}/corpus"
            " --gin.STORE_DIR={out_dir}/embeddings --gin.VOCABULARY_PATH={out_dir}/corpus/vocabulary.model"
            " --gin.MODEL_DIR={out_dir}/sr",
        ),
        (
            "evaluate",
            "imagen_jax eval --gin_file={experiment}_eval.gin --gin.RUN_DIR={out_dir}"
            " --gin.CORPUS_DIR={out_dir}/corpus",
        ),
        ("report", "imagen_jax report --run_dir {out_dir}"),
    )
    return config.lock()
