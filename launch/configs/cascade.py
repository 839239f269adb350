"""The paper's cascade as one job: captions encoded, then all stages side by side, then pictures and a report.

Launchers of machines elsewhere add where it runs. Commands are those of a person; {field} is a field of the config.
"""

from ml_collections import ConfigDict

STAGES = ("base", "sr256", "sr1024")
# What training and `cache_text` share.
_TEXT = (
    " --gin_file={mesh} --gin.CORPUS_DIR={corpus_dir} --gin.STORE_DIR={out_dir}/embeddings --gin.T5_PATH={t5_path}"
    " --gin.VOCABULARY_PATH={vocabulary} --gin.{overrides}"
)


def base_config() -> ConfigDict:
    """What to run: gin files, overrides and where everything lies. Fields that are empty are a user's to set."""
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
    # NAME=VALUE as after --gin., for all stages; those of one stage are in stages.STAGE.overrides.
    config.overrides = ()
    config.max_restarts = 10
    # Names of variables whose values come from a store of secrets, never from here.
    config.secrets = ()
    config.phases = (
        (
            "cache_text",
            "imagen_jax cache_text --gin_file={stages.base.gin_files}" + _TEXT.replace("{mesh}", "{small_mesh}"),
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
    config.small_mesh = "configs/mesh/fsdp.gin"
    return config


def _train(stage: str) -> tuple[str, str, str, str]:
    command = f"imagen_jax train --gin_file={{stages.{stage}.gin_files}}{_TEXT} --gin.{{stages.{stage}.overrides}}"
    return f"train_{stage}", f"{command} --gin.MODEL_DIR={{out_dir}}/{stage}", "cache_text", stage


def tpu_machines(base: str, sr: str, small: str) -> ConfigDict:
    """The slices of each phase, by the names of `imagen_jax plan`."""
    accelerators = {"base": base, "sr256": sr, "sr1024": sr, "small": small}
    return ConfigDict({name: {"accelerator": one, "num_slices": 1} for name, one in accelerators.items()})
