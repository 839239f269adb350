"""The paper's cascade as one job: captions encoded, then all stages side by side, then pictures and a report.

Launchers of machines elsewhere add where it runs. Commands are those of a person; {field} is a field of the config.
"""

from ml_collections import ConfigDict

STAGES = ("base", "sr256", "sr1024")
# What training and `cache_text` share.
_TEXT = (
    " --gin.CORPUS_DIR={corpus_dir} --gin.STORE_DIR={out_dir}/embeddings --gin.T5_PATH={t5_path}"
    " --gin.VOCABULARY_PATH={vocabulary}"
)


def base_config() -> ConfigDict:
    """Gin files, overrides and places of the cascade. Fields that are empty are a user's to set."""
    config = ConfigDict()
    # Begins the names of jobs, machines and objects.
    config.name = "imagen"
    # Where every host reads and writes: a bucket, or a file system that all see.
    config.out_dir = ""
    config.corpus_dir = ""
    config.t5_path = ""
    config.vocabulary = ""
    config.prompts_file = "data/prompts/demo.txt"
    config.stages = ConfigDict(
        {stage: {"gin_files": (f"configs/experiments/imagen_{stage}.gin",), "overrides": ()} for stage in STAGES}
    )
    # How the devices of a machine are used; a gin file.
    config.mesh = "configs/mesh/pod.gin"
    # Of `cache_text`; the stages' files include the first.
    config.text_gin_files = ("configs/text/t5_v1_1_xxl.gin", "configs/runs/cache_text.gin")
    # NAME=VALUE as after --gin., for the training of all stages; those of one stage are in stages.STAGE.overrides.
    config.overrides = ()
    config.max_restarts = 10
    # Names of variables whose values come from a store of secrets, never from here.
    config.secrets = ()
    config.phases = (
        (
            "cache_text",
            "imagen_jax cache_text --gin_file={text_gin_files}" + _TEXT,
            "",
            "small",
        ),
        *(_train(stage) for stage in STAGES),
        (
            "draw",
            "imagen_jax sample --checkpoint {out_dir} --prompts_file {prompts_file} --output {out_dir}/samples"
            " --overwrite && imagen_jax report --run_dir {out_dir}",
            " ".join(f"train_{stage}" for stage in STAGES),
            "small",
        ),
    )
    return config


def _train(stage: str) -> tuple[str, str, str, str]:
    command = (
        f"imagen_jax train --gin_file={{stages.{stage}.gin_files}} --gin_file={{mesh}}{_TEXT}"
        f" --gin.MODEL_DIR={{out_dir}}/{stage} --gin.{{overrides}} --gin.{{stages.{stage}.overrides}}"
    )
    return f"train_{stage}", command, "cache_text", stage


def tpu_machines(base: str, sr: str, small: str) -> ConfigDict:
    """The slices of each phase, by the names of `imagen_jax plan`."""
    accelerators = {"base": base, "sr256": sr, "sr1024": sr, "small": small}
    return ConfigDict({name: {"accelerator": one, "num_slices": 1} for name, one in accelerators.items()})
