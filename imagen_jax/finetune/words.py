"""Note of a run of textual inversion beside its checkpoints, and the word that it learned.

inversion.json   the word, and the digest of the text encoder that its vectors are for
"""

import json

import numpy as np

from imagen_jax.checkpoints import checkpoints
from imagen_jax.errors import UserError
from imagen_jax.files import AnyPath, check_content, read_json, size_of
from imagen_jax.text.inversion import LearnedWord

RECORD = "inversion.json"
# The parameters of such a run.
VECTORS = "vectors"
_FIX = "restore it from a copy"


def record(word: str, encoder: str) -> bytes:
    """The file's bytes.

    Args:
      word: that is learned.
      encoder: SHA-256 of the encoder's parameters.
    """
    return (json.dumps({"word": word, "encoder": encoder}, indent=1) + "\n").encode()


def read_record(checkpoint: AnyPath) -> tuple[str, str]:
    """The word and the encoder's digest that a checkpoint notes.

    Raises:
      UserError: the note is damaged.
    """
    path = checkpoint / RECORD
    try:
        told = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {_FIX}") from error
    check_content(path, told, {"word": str, "encoder": str}, _FIX)
    return told["word"], told["encoder"]


def learned_word(model_dir: str) -> LearnedWord:
    """The word that a run learned, with the average of its vectors.

    Raises:
      UserError: there is no checkpoint, it is damaged, or the run is none of textual inversion.
    """

    def read(path: AnyPath) -> LearnedWord:
        if not (path / RECORD).is_file():
            raise UserError(f"{model_dir} learned no word: it is no run of textual inversion (TrainConfig.inversion)")
        word, encoder = read_record(path)
        vectors = np.asarray(checkpoints.load_item(path, "ema_params")[VECTORS])
        return LearnedWord(word=word, vectors=vectors, encoder=encoder)

    return checkpoints.read_newest(model_dir, read)


def write_word(model_dir: str, path: str, overwrite: bool) -> None:
    """Writes the word of a run as its file.

    Raises:
      UserError: as `learned_word`; or something is in the way.
    """
    if size_of(path) is not None and not overwrite:
        raise UserError(f"{path} is there already; choose another file, or give --overwrite to replace it")
    learned_word(model_dir).save(path)
