"""Phases that the two-stage pipelines share, as (name, command) pairs; {field} is a field of the pipeline's config."""

from ml_collections import ConfigDict

_TEXT = (
    " --gin.CORPUS_DIR={out_dir}/corpus --gin.STORE_DIR={out_dir}/embeddings"
    " --gin.VOCABULARY_PATH={out_dir}/corpus/vocabulary.model"
)


def base_config(out_dir: str, experiment: str) -> ConfigDict:
    """What every pipeline sets: where it writes, and the gin files EXPERIMENT_base.gin, _sr.gin and _eval.gin."""
    config = ConfigDict()
    config.out_dir = out_dir
    config.experiment = experiment
    # Of the drawn corpus, the trainings and the samples.
    config.seed = 0
    # XLA's newer CPU kernels run this code's small convolutions, forwards and back, at seven eighths of the
    # speed of the older ones (benchmarks/cpu_kernels.py). Devices other than CPUs do not look at this flag.
    config.xla_flags = "--xla_cpu_experimental_ynn_fusion_type="
    # A step frees its arrays and takes new ones: memory that the C library gives back to the system in between comes
    # again as thousands of page faults, a sixth of the demo's training. It keeps this many bytes instead.
    config.kept_bytes = 2**39
    # NAME=VALUE as after --gin., for the training of every stage.
    config.overrides = ()
    # Processes of this machine that train together, joined by jax.
    config.num_processes = 1
    # How few of them may go on where one stays lost; 0: none fewer. Needs TrainConfig.planned_devices in `overrides`.
    config.min_processes = 0
    # How often a phase that a signal ended is started again.
    config.max_restarts = 3
    return config


SETTINGS = "XLA_FLAGS={xla_flags} MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_={kept_bytes}"


EMBEDDINGS = ("embeddings", SETTINGS + " imagen_jax cache_text --gin_file={experiment}_base.gin" + _TEXT)


def train(stage: str) -> tuple[str, str]:
    """Trains one stage, "base" or "sr", into OUT_DIR/STAGE."""
    command = SETTINGS + f" imagen_jax train --gin_file={{experiment}}_{stage}.gin"
    return (
        f"train_{stage}",
        command + _TEXT + f" --gin.MODEL_DIR={{out_dir}}/{stage} --gin.SEED={{seed}} --gin.{{overrides}}",
    )


REPORT = ("report", "imagen_jax report --run_dir {out_dir}")
