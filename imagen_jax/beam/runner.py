"""Runs a pipeline: its options from the command line, its errors as plain words."""

import re
from collections.abc import Callable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineState

from imagen_jax.errors import UserError

# What a worker raised comes back as the text of its traceback.
_TOLD = re.compile(r"^imagen_jax\.errors\.UserError: (.*?)(?: \[while running '|\Z)", re.DOTALL | re.MULTILINE)
# Of a file system that fails: Python's errors with a number, and those of buckets.
_FAILED = re.compile(
    r"^(?:\w+Error: (?=\[Errno)|OSError: |gcsfs\.retry\.HttpError: )(.*?)(?: \[while running '|$)", re.MULTILINE
)


def pipeline_options(arguments: Sequence[str]) -> PipelineOptions:
    """Beam's own options, such as --runner=DirectRunner --direct_num_workers=2.

    Args:
      arguments: command-line words.

    Raises:
      UserError: Beam does not know one of them; it would pass it over.
    """
    options = PipelineOptions(list(arguments))
    known = options.get_all_options().keys()
    unknown = sorted(options.get_all_options(retain_unknown_options=True).keys() - known)
    if unknown:
        raise UserError(
            f"neither this program nor Apache Beam knows --{' and --'.join(unknown)}; "
            "--help lists the program's options, Beam's documentation the runners' options"
        )
    standard = options.view_as(StandardOptions)
    if standard.runner in (None, "DirectRunner"):
        # Beam's DirectRunner would first look for Prism, a program it downloads; this is its engine in Python.
        standard.runner = "FnApiRunner"
    return options


def run(build: Callable[[beam.Pipeline], object], options: PipelineOptions) -> None:
    """Runs the pipeline that `build` makes, to its end.

    Args:
      build: puts the transforms into a pipeline.
      options: from `pipeline_options`.

    Raises:
      UserError: what a worker refused, where the runner tells it, or somebody cancelled the pipeline.
      OSError: a worker could not read or write. What else goes wrong in a worker is the runner's own error.
    """
    pipeline = beam.Pipeline(options=options)
    build(pipeline)
    try:
        state = pipeline.run().wait_until_finish()
    except RuntimeError as error:
        if told := _TOLD.search(str(error)):
            raise UserError(told[1]) from error
        if failed := _FAILED.search(str(error)):
            raise OSError(f"a worker failed: {failed[1]}") from error
        raise
    if state != PipelineState.DONE:
        raise UserError(f"the pipeline ended as {state}, expected {PipelineState.DONE}; start the same command again")
