"""The kinds of encoder that checkpoints hold, and how to tell which one does."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.files import read_json
from imagen_jax.text.encoders.bert import BertConfig
from imagen_jax.text.encoders.clip import CLIPConfig
from imagen_jax.text.encoders.config import EncoderConfig
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.weights import t5_weights, transformer_weights
from imagen_jax.text.weights.checkpoint_arrays import CheckpointArrays
from imagen_jax.text.weights.sources import Source


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of encoder.

    Attributes:
      name: as it is written.
      config: its sizes.
      model_types: what the config.json of a Hugging Face folder calls it.
      sources: where its parameters are in such a folder, by dotted path; UserError where they are not.
      infer: what the shapes tell of the config.
      stated: what config.json tells of it; KeyError, ValueError, TypeError or AttributeError for another
        network's.
    """

    name: str
    config: type[EncoderConfig]
    model_types: tuple[str, ...]
    sources: Callable[[CheckpointArrays], dict[str, Source]]
    infer: Callable[[CheckpointArrays, Mapping[str, Source]], dict[str, Any]]
    stated: Callable[[Mapping[str, Any]], dict[str, Any]]


T5 = Family(
    "T5",
    T5Config,
    ("t5", "mt5", "umt5"),  # ByT5 is a t5.
    t5_weights.hugging_face_sources,
    t5_weights.infer_config,
    t5_weights.stated_config,
)
CLIP = Family(
    "CLIP text",
    CLIPConfig,
    ("clip", "clip_text_model"),
    transformer_weights.clip_sources,
    transformer_weights.clip_infer,
    transformer_weights.clip_stated,
)
BERT = Family(
    "BERT",
    BertConfig,
    ("bert",),
    transformer_weights.bert_sources,
    transformer_weights.bert_infer,
    transformer_weights.bert_stated,
)
FAMILIES = (T5, CLIP, BERT)


def of_architecture(architecture: object) -> Family:
    """The family whose configs have this architecture.

    Raises:
      UserError: there is none.
    """
    known = {family.config.architecture: family for family in FAMILIES}
    if not isinstance(architecture, str) or architecture not in known:
        raise UserError(
            f"an encoder's architecture is {architecture!r}; expected one of {', '.join(known)}: install a newer "
            "imagen_jax, or write the copy again with `imagen_jax import_text`"
        )
    return known[architecture]


def of_folder(path: str) -> tuple[Family, dict[str, Any]]:
    """Family of a Hugging Face folder, and what its config.json says of the config.

    Raises:
      UserError: the file is missing or damaged, or is of another network.
    """
    file = os.path.join(path, "config.json")
    try:
        content = read_json(file)
        model_type = content.get("model_type", "t5")
    except FileNotFoundError as error:
        raise UserError(f"{path} lacks config.json; download it beside the weights") from error
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}); download it again") from error
    known = {model_type: family for family in FAMILIES for model_type in family.model_types}
    if not isinstance(model_type, str) or model_type not in known:
        raise UserError(
            f"{file} is of a {model_type!r} model, not of a text encoder that is known here: expected one of "
            f"{', '.join(sorted(known))}; give the folder of a T5, CLIP or BERT model"
        )
    family = known[model_type]
    try:
        return family, family.stated(content)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(
            f"{file} is not the config of a {family.name} encoder ({type(error).__name__}: {error}); download it "
            "again, or give the folder of a T5, CLIP or BERT model"
        ) from error
