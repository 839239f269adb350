"""Vocabularies: SentencePiece and bytes (pad 0, eos 1, unk 2, as T5's), CLIP's and BERT's.

What stands around the ids of a caption belongs to the vocabulary: T5 ends it with </s>, CLIP has <|startoftext|> before
and <|endoftext|> after, BERT [CLS] and [SEP].
"""

import io
import os
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece

from imagen_jax.errors import UserError
from imagen_jax.files import (
    files_under,
    installed_path,
    is_remote,
    local_copy,
    local_folder,
    sha256_of_file,
    write_bytes,
)
from imagen_jax.text import hugging_face_tokenizer

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
NUM_SPECIAL = 3
# Of at most 4 bytes each: below the 4192 bytes of a sentence that SentencePiece's trainer takes.
_PIECE_CHARACTERS = 1000

BYTES = "bytes"
HUGGING_FACE_FILE = "spiece.model"


class Tokenizer:
    """Captions to ids without the special tokens around them.

    Args:
      path: a SentencePiece `.model` file whose ids are pad 0 and eos 1 (every T5 vocabulary;
        `train_sentencepiece`), "bytes" (ByT5: an id a UTF-8 byte), or a Hugging Face folder with `spiece.model` (T5),
        else with what `hugging_face_tokenizer` reads (CLIP, BERT).

    Attributes:
      vocab_size: ids it may give, the special ones included.
      prefix: ids before those of every caption.
      suffix: ids after them.
      pad_id: fills up shorter captions.
      unk_id: what stands for text that it does not know; None: it knows all text.
      sha256: digest of the vocabulary.

    Raises:
      UserError: the file is missing, is no vocabulary of that kind, or has other ids.
    """

    def __init__(self, path: str):
        self.prefix: tuple[int, ...] = ()
        self.suffix: tuple[int, ...] = (EOS_ID,)
        self.pad_id = PAD_ID
        self.unk_id: int | None = UNK_ID
        path = path if path == BYTES else _here(path)
        spiece = os.path.join(path, HUGGING_FACE_FILE)
        if os.path.isdir(path) and not os.path.isfile(spiece) and hugging_face_tokenizer.is_vocabulary(path):
            found = hugging_face_tokenizer.open_vocabulary(path)
            self.prefix, self.suffix, self.pad_id = found.prefix, found.suffix, found.pad_id
            self.sha256, self.vocab_size, self.unk_id = found.sha256, found.vocab_size, found.unk_id
            self._encode = found.encode
            return
        if path == BYTES:
            self.sha256, self.vocab_size, self.unk_id = BYTES, NUM_SPECIAL + 256, None
            self._encode = lambda captions: [[NUM_SPECIAL + byte for byte in one.encode()] for one in captions]
        else:
            path = spiece if os.path.isdir(path) else path
            vocabulary = load_vocabulary(path)
            self.sha256, self.vocab_size = sha256_of_file(path), vocabulary.GetPieceSize()
            self._encode = lambda captions: vocabulary.EncodeAsIds(captions)

    def encode(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of each caption, without prefix and suffix."""
        return self._encode(list(captions))


def vocabulary_files(path: str) -> list[str]:
    """Files that the vocabulary at `path` (see Tokenizer) is read from.

    Raises:
      UserError: there is no vocabulary.
    """
    path = _here(path)
    if not os.path.isdir(path):
        found = [path] if os.path.isfile(path) else []
    else:
        spiece = os.path.join(path, HUGGING_FACE_FILE)
        found = [spiece] if os.path.isfile(spiece) else hugging_face_tokenizer.vocabulary_files(path)
    if not found:
        raise UserError(f"no vocabulary at {path!r}; set VOCABULARY_PATH to where it is")
    return found


def _here(path: str) -> str:
    """Where the files of a vocabulary are on this machine: themselves, or copies of those of a bucket."""
    path = installed_path(path)
    if not is_remote(path):
        return path
    names = files_under(path)
    if not names:
        try:
            return local_copy(path)
        except FileNotFoundError as error:
            raise UserError(f"no vocabulary at {path!r}; set VOCABULARY_PATH to where it is") from error
    return local_folder(path, [name for name in names if name in (HUGGING_FACE_FILE, *hugging_face_tokenizer.FILES)])


def load_vocabulary(path: str) -> sentencepiece.SentencePieceProcessor:
    """Opens a SentencePiece model.

    Args:
      path: a `.model` file whose ids are pad 0 and eos 1 (every T5 vocabulary; `train_sentencepiece`).

    Raises:
      UserError: the file is missing, is no SentencePiece model, or has other ids.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"no vocabulary file at {path!r}; build the corpus that trains it, or set VOCABULARY_PATH to a "
            "SentencePiece .model file, or to the folder of a T5, CLIP or BERT vocabulary"
        )
    vocabulary = sentencepiece.SentencePieceProcessor()
    try:
        with open(path, "rb") as file:
            vocabulary.LoadFromSerializedProto(file.read())
    except RuntimeError as error:
        raise UserError(f"{path!r} is not a SentencePiece model ({error})") from error
    got = (vocabulary.pad_id(), vocabulary.eos_id())
    if got != (PAD_ID, EOS_ID):
        raise UserError(
            f"vocabulary {path!r} has pad and eos ids {got}; expected {(PAD_ID, EOS_ID)}; train it with "
            "imagen_jax.text.tokenizer.train_sentencepiece or use a T5 vocabulary"
        )
    return vocabulary


def _short(caption: str) -> Iterator[str]:
    """The caption in pieces, cut between words, that SentencePiece's trainer takes: it passes over longer sentences."""
    if len(caption) <= _PIECE_CHARACTERS:
        yield caption
        return
    piece = ""
    for word in caption.split(" "):
        for start in range(0, max(len(word), 1), _PIECE_CHARACTERS):
            part = word[start : start + _PIECE_CHARACTERS]
            if piece and len(piece) + len(part) >= _PIECE_CHARACTERS:
                yield piece
                piece = part
            else:
                piece = f"{piece} {part}" if piece else part
    yield piece


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
                yield from _short(caption)

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
    write_bytes(path, model.getvalue())
