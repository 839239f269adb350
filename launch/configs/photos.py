"""Super-resolution of photographs: crops of the pictures that come with scikit-image and scikit-learn.

make demo-photos        (python -m launch.local --config launch/configs/photos.py)
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.out_dir = "runs/photos"
    config.experiment = "configs/experiments/photos"  # Followed by _base.gin, _sr.gin.
    config.seed = 0
    config.phases = (
        ("corpus", "python data/build_photos.py --out {out_dir}/corpus --seed {seed}"),
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
            "sample",
            "imagen_jax sample --checkpoint {out_dir} --prompts_file data/prompts/photos.txt"
            " --output {out_dir}/samples --seed {seed} --overwrite",
        ),
        ("report", "imagen_jax report --run_dir {out_dir}"),
    )
    return config.lock()
