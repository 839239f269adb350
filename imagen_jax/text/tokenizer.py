"""Vocabularies through seqio, SentencePiece and bytes: pad 0, eos 1, unk 2, as T5's."""

import io
import os
from collections.abc import Iterable, Sequence

import sentencepiece
import seqio
from google.protobuf.message import DecodeError

from imagen_jax.errors import UserError
from imagen_jax.text.store_format import file_sha256

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2


BYTES = "bytes"
HUGGING_FACE_FILE = "spiece.model"


class Tokenizer:
    """Captions to ids without the end-of-sequence token.

    Args:
      path: a SentencePiece `.model` file whose ids are pad 0 and eos 1 (every T5 vocabulary;
        `train_sentencepiece`), a folder with a Hugging Face `spiece.model`, or "bytes" (ByT5: an id a UTF-8 byte).

    Attributes:
      vocab_size: ids it may give, the special ones included.
      sha256: digest of the vocabulary.

    Raises:
      UserError: the file is missing, is no SentencePiece model, or has other ids.
    """

    def __init__(self, path: str):
        if path == BYTES:
            vocabulary = seqio.ByteVocabulary()
            self.sha256 = BYTES
            self._encode = lambda captions: [vocabulary.encode(caption) for caption in captions]
        else:
            if os.path.isdir(path):
                path = os.path.join(path, HUGGING_FACE_FILE)
            vocabulary = load_vocabulary(path)
            self.sha256 = file_sha256(path)
            self._encode = vocabulary.tokenizer.EncodeAsIds
        self.vocab_size: int = vocabulary.vocab_size

    def encode(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of each caption."""
        return self._encode(list(captions))


def load_vocabulary(path: str) -> seqio.SentencePieceVocabulary:
    """Opens a SentencePiece model.

    Args:
      path: a `.model` file whose ids are pad 0 and eos 1 (every T5 vocabulary; `train_sentencepiece`).

    Raises:
      UserError: the file is missing, is no SentencePiece model, or has other ids.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"no vocabulary file at {path!r}; build the corpus that trains it, or set VOCABULARY_PATH to a "
            "SentencePiece .model file"
        )
    vocabulary = seqio.SentencePieceVocabulary(path)
    try:
        tokenizer = vocabulary.tokenizer
    except (DecodeError, RuntimeError) as error:
        raise UserError(f"{path!r} is not a SentencePiece model ({error})") from error
    got = (tokenizer.pad_id(), tokenizer.eos_id())
    if got != (PAD_ID, EOS_ID):
        raise UserError(
            f"vocabulary {path!r} has pad and eos ids {got}; expected {(PAD_ID, EOS_ID)}; train it with "
            "imagen_jax.text.tokenizer.train_sentencepiece or use a T5 vocabulary"
        )
    return vocabulary


def train_sentencepiece(captions: Iterable[str], path: str, vocab_size: int) -> None:
    """Trains a byte-pair SentencePiece model on captions and writes it to `path`.

    Byte pairs, not T5's unigrams: on the few words of a synthetic corpus the unigram trainer leaves common
    words in letters, byte pairs merge every word into one piece while vocab_size lasts. Equal captions in
    equal order give an equal file. The file appears whole or not at all.

    Args:
      captions: training text, one caption each; empty ones are passed over.
      path: the `.model` file to write; its directory exists.
      vocab_size: the most pieces, pad, eos and unk included; a small corpus yields fewer.

    Raises:
      UserError: there are no captions, or vocab_size is too small for their characters.
    """
    model = io.BytesIO()
    num_captions = 0

    def counted() -> Iterable[str]:
        nonlocal num_captions
        for caption in captions:
            if caption.strip():
                num_captions += 1
                yield caption

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(counted()),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            num_threads=1,  # several threads sum in changing order
            shuffle_input_sentence=False,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        if num_captions == 0:
            raise UserError(f"cannot train the vocabulary {path!r}: there are no captions") from error
        raise UserError(
            f"cannot train a vocabulary of {vocab_size} pieces on {num_captions} captions ({error}); "
            "change vocab_size or give more captions"
        ) from error
    beside = f"{path}.tmp-{os.getpid()}"
    with open(beside, "wb") as file:
        file.write(model.getvalue())
    os.replace(beside, path)
