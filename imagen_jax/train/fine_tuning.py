"""Needs of a run that trains LoRA or a word, besides its own parameters: the base, and a note of it."""

import dataclasses
from collections.abc import Mapping

from imagen_jax.checkpoints import folders
from imagen_jax.finetune import source, words
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.inversion import first_vectors, word_encoder
from imagen_jax.train.lora import lora_record
from imagen_jax.train.setup import TrainSetup, start_source


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning:
    """A run's parts once its base is known.

    Args:
      setup: step and state.
      reader: encoder that reads the captions of the data.
      beside: further files beside the arrays of every checkpoint.
    """

    setup: TrainSetup
    reader: TextEncoder
    beside: Mapping[str, bytes]


def prepare(config: TrainConfig, setup: TrainSetup, encoder: TextEncoder) -> FineTuning:
    """Finds what the run is trained on; of a run that trains all parameters there is nothing.

    Raises:
      UserError: the base is not there.
    """
    if (record := lora_record(config)) is not None:
        where = folders.checkpoint_dir(config.model_dir, config.num_steps)
        return FineTuning(
            setup=setup.with_base(record.base), reader=encoder, beside={source.RECORD: record.content(where)}
        )
    if config.inversion is None:
        return FineTuning(setup=setup, reader=encoder, beside={})
    base, start = start_source(config), first_vectors(config.inversion, encoder)
    assert base is not None
    note = words.record(config.inversion.word, encoder.fingerprint()["encoder"])
    return FineTuning(
        setup=setup.with_word(base, encoder, start),
        reader=word_encoder(config, encoder, start),
        beside={words.RECORD: note},
    )
