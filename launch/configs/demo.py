"""The demo: a corpus of drawn shapes, both stages trained, 64x64 samples, alignment measured, one page.

make demo        (python -m launch.local --config launch/configs/demo.py)
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.out_dir = "runs/demo"
    config.experiment = "configs/experiments/demo"  # Followed by _base.gin, _sr.gin, _eval.gin.
    config.seed = 0
    config.num_train = 20_000
    config.num_val = 1_000
    config.phases = (
        (
            "corpus",
            "python data/build_shapes.py --out {out_dir}/corpus --seed {seed} --num_train {num_train}"
            " --num_val {num_val}",
        ),
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
            "imagen_jax sample --checkpoint {out_dir} --prompts_file data/prompts/demo.txt"
            " --output {out_dir}/samples --seed {seed} --overwrite",
        ),
        ("evaluate", "imagen_jax eval --gin_file={experiment}_eval.gin --gin.RUN_DIR={out_dir}"),
        ("report", "imagen_jax report --run_dir {out_dir}"),
    )
    return config.lock()
