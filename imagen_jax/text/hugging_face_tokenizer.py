"""Vocabularies of Hugging Face folders, by its `tokenizers` library: CLIP's byte pairs, BERT's WordPiece.

A folder holds one of, looked for in this order: `tokenizer.json`, which states everything; `vocab.json` and
`merges.txt` (CLIP); `vocab.txt` (BERT), with `tokenizer_config.json` saying whether case and accents count. The last
two are read as transformers reads them: CLIP lower-cases and takes white space together (section 2.4 of arXiv
2103.00020), then cuts by its pattern into words.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from imagen_jax.errors import UserError
from imagen_jax.files import read_json, sha256_of_file

_JSON, _CLIP, _BERT = ("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",)
_BERT_SETTINGS = "tokenizer_config.json"
FILES = (*_JSON, *_CLIP, *_BERT, _BERT_SETTINGS)
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


_UNKNOWN = ("[UNK]", "<unk>")


@dataclasses.dataclass(frozen=True)
class HuggingFaceVocabulary:
    """A vocabulary that was opened.

    Attributes:
      tokenizer: gives ids without the special tokens around a caption when told so.
      prefix: ids before those of every caption.
      suffix: ids after them.
      pad_id: fills up shorter captions; the last of `suffix` where there is no padding token.
      unk_id: what stands for text that it does not know; None: it knows all text.
      vocab_size: one more than the largest id.
      sha256: digest of the files and settings that bear on the ids.
    """

    tokenizer: Tokenizer
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad_id: int
    unk_id: int | None
    vocab_size: int
    sha256: str

    def encode(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of each caption without the special tokens around it.

        Raises:
          UserError: the vocabulary is damaged: it has nothing for what it does not know.
        """
        try:
            return [one.ids for one in self.tokenizer.encode_batch(list(captions), add_special_tokens=False)]
        except Exception as error:  # The library raises plain Exceptions.
            raise UserError(f"the vocabulary is damaged ({error}); download it again") from error


def is_vocabulary(path: str) -> bool:
    """Tells if a folder holds a vocabulary that `open_vocabulary` reads."""
    return _files(path) is not None


def open_vocabulary(path: str) -> HuggingFaceVocabulary:
    """Opens the vocabulary of a folder.

    Raises:
      UserError: a file is damaged, or the vocabulary puts no special tokens around a caption.
    """
    files = _files(path)
    if files is None:
        raise UserError(f"no vocabulary in {path!r}: expected tokenizer.json, vocab.json and merges.txt, or vocab.txt")
    full = [os.path.join(path, name) for name in files]
    try:
        return _opened(path, files, full)
    except UserError:
        raise
    # The library raises plain Exceptions, and its panics are not even those.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"the vocabulary {', '.join(full)} is damaged ({error}); download it again") from error


def _opened(path: str, files: tuple[str, ...], full: Sequence[str]) -> HuggingFaceVocabulary:
    digest = sha256_of_file(full[0])
    if files == _JSON:
        tokenizer = Tokenizer.from_file(*full)
    elif files == _CLIP:
        tokenizer = _clip(*full)
        digest = _digest("clip", *map(sha256_of_file, full))
    else:
        settings = _bert_settings(path)
        tokenizer = _bert(full[0], settings)
        digest = _digest("bert", digest, json.dumps(settings, sort_keys=True))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prefix, suffix = _frame(tokenizer, path)
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    # tokenizer.json states the ids of these once more.
    if max(prefix + suffix) >= vocab_size:
        raise UserError(
            f"the vocabulary {full[0]} is damaged (it puts the id {max(prefix + suffix)} around captions and has "
            f"{vocab_size} ids); download it again"
        )
    pad_id = tokenizer.token_to_id("[PAD]")
    return HuggingFaceVocabulary(
        tokenizer=tokenizer,
        prefix=prefix,
        suffix=suffix,
        pad_id=suffix[-1] if pad_id is None else pad_id,
        unk_id=next((found for word in _UNKNOWN if (found := tokenizer.token_to_id(word)) is not None), None),
        vocab_size=vocab_size,
        sha256=digest,
    )


def vocabulary_files(path: str) -> list[str]:
    """Files of a folder that bear on the ids; empty where it holds no vocabulary."""
    names = _files(path)
    if names is None:
        return []
    settings = (_BERT_SETTINGS,) if names == _BERT and os.path.isfile(os.path.join(path, _BERT_SETTINGS)) else ()
    return [os.path.join(path, name) for name in (*names, *settings)]


def _files(path: str) -> tuple[str, ...] | None:
    for files in (_JSON, _CLIP, _BERT):
        if all(os.path.isfile(os.path.join(path, name)) for name in files):
            return files
    return None


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _clip(vocabulary: str, merges: str) -> Tokenizer:
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(
        models.BPE.from_file(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=end)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    ids = _special_ids(tokenizer, vocabulary, start, end)
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, ids[end]), (start, ids[start]), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def _bert_settings(path: str) -> dict[str, bool | None]:
    """Settings of tokenizer_config.json that bear on the ids; BERT's defaults where it is silent."""
    file = os.path.join(path, _BERT_SETTINGS)
    try:
        stated = read_json(file) if os.path.isfile(file) else {}
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); download it again") from error
    if not isinstance(stated, dict):
        raise UserError(f"{file} is damaged (no JSON object); download it again")
    defaults = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None}
    return {name: stated.get(name, default) for name, default in defaults.items()}


def _bert(vocabulary: str, settings: dict[str, bool | None]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece.from_file(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(settings["tokenize_chinese_chars"]),
        strip_accents=settings["strip_accents"],
        lowercase=bool(settings["do_lower_case"]),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ids = _special_ids(tokenizer, vocabulary, "[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return tokenizer


def _special_ids(tokenizer: Tokenizer, file: str, *tokens: str) -> dict[str, int]:
    """Ids of tokens that are found in a caption as they stand; all must be in the vocabulary already."""
    known = tokenizer.get_vocab()
    absent = [token for token in tokens if token not in known]
    if absent:
        raise UserError(f"the vocabulary {file} lacks {', '.join(absent)}; give the one that came with the encoder")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return {token: known[token] for token in tokens}


def _frame(tokenizer: Tokenizer, path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before and after those of a caption."""
    framed, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False).ids
    start = framed.special_tokens_mask.index(0) if bare else 0
    prefix, suffix = tuple(framed.ids[:start]), tuple(framed.ids[start + len(bare) :])
    if not suffix:
        raise UserError(
            f"the vocabulary {path!r} ends captions with no special token; expected that of a text encoder, as T5's, "
            "CLIP's or BERT's"
        )
    return prefix, suffix
