"""Settings of one stage's training data, as plain data, so that it loads without TensorFlow."""

import dataclasses
import math
import os
from collections.abc import Sequence

from imagen_jax.checks import check_count, check_path
from imagen_jax.data.sizes import Size, check_sizes, names_of, scaled
from imagen_jax.errors import UserError

CROPS = ("none", "centre", "random")
BAD_RECORDS = ("stop", "skip")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusShare:
    """One corpus of a mixture.

    Args:
      corpus_dir: corpus directory.
      store_dir: embedding store of its captions; None encodes them as they are read.
      rate: its part of the examples, against the rates of the others; need not sum to 1.
      loss_weight: factor of its examples' loss, e.g. the lambda of DreamBooth's prior pictures.
      split: name of a split of the corpus.
      name: of the source in metrics; None: the last part of corpus_dir.
    """

    corpus_dir: str
    store_dir: str | None = None
    rate: float = 1.0
    loss_weight: float = 1.0
    split: str = "train"
    name: str | None = None

    def __post_init__(self) -> None:
        check_path("CorpusShare.corpus_dir", self.corpus_dir)
        if self.store_dir is not None:
            check_path("CorpusShare.store_dir", self.store_dir)
        if not isinstance(self.split, str) or not self.split:
            raise UserError(f"CorpusShare.split is {self.split!r}; expected a non-empty text")
        _check_rates("CorpusShare.rate", (self.rate,))
        _check_rates("CorpusShare.loss_weight", (self.loss_weight,))
        if self.name is None:
            object.__setattr__(self, "name", os.path.basename(os.path.normpath(self.corpus_dir)))


def _check_rates(name: str, rates: Sequence[float]) -> None:
    """Refuses rates that are no finite numbers of at least 0."""
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < math.inf:
            raise UserError(f"{name} ({rate!r}) must be a number of at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of one stage's training data: one corpus, or a mixture of several.

    Args:
      corpus_dir: corpus directory; None where `mixture` says what is read.
      store_dir: embedding store of its captions; None encodes them as they are read, which suits small runs only.
      split: name of a split of the corpus.
      task: name of a seqio task of yours that gives image and caption, read as it is; see `data.task_batches`.
      mixture: corpora with their rates, or the name of a seqio Mixture of tasks that `data.tasks.add_corpus` made.
      rate_changes: pairs of a step and the rates of all sources from that step on, in their order.
      image_size: side of x0, in pixels; at most the corpus's.
      low_res_size: side of low_res, in pixels, a proper divisor of image_size; None for a base model.
      sizes: heights and widths of x0 where the corpus is one of sizes (`data.sizes`), scaled to this image_size; every
        batch is of one of them. Empty: squares.
      max_text_length: tokens that captions are padded to.
      crop: "none" resizes the whole image; "centre" and "random" cut an image_size window out of it.
      bad_records: "stop" ends the run at a record that cannot be decoded, "skip" reads the next one in its place.
    """

    corpus_dir: str | None = None
    store_dir: str | None = None
    split: str = "train"
    task: str | None = None
    mixture: tuple[CorpusShare, ...] | str | None = None
    rate_changes: tuple[tuple[int, tuple[float, ...]], ...] = ()
    image_size: int
    low_res_size: int | None = None
    sizes: tuple[Size, ...] = ()
    max_text_length: int
    crop: str = "none"
    bad_records: str = "stop"

    def __post_init__(self) -> None:
        if [self.corpus_dir, self.mixture, self.task].count(None) != 2:
            raise UserError("DataConfig needs one of corpus_dir, mixture and task, and not two; give one of them")
        if self.task is not None and (not isinstance(self.task, str) or self.store_dir is not None):
            raise UserError(f"DataConfig.task ({self.task!r}) must be a task's name, and has no store_dir")
        if self.corpus_dir is not None:
            check_path("corpus_dir", self.corpus_dir)
        if self.store_dir is not None:
            check_path("store_dir", self.store_dir)
        if self.mixture is not None:
            self._check_mixture()
        if not isinstance(self.split, str) or not self.split:
            raise UserError(f"split is {self.split!r}; expected a non-empty text")
        check_count("image_size", self.image_size, 1)
        check_count("max_text_length", self.max_text_length, 1)
        if self.low_res_size is not None:
            check_count("low_res_size", self.low_res_size, 1)
            if self.image_size % self.low_res_size or self.low_res_size == self.image_size:
                divisors = [str(n) for n in range(1, self.image_size) if self.image_size % n == 0]
                raise UserError(
                    f"low_res_size ({self.low_res_size}) must be a proper divisor of image_size "
                    f"({self.image_size}); choose one of {', '.join(divisors) or 'a larger image_size'}"
                )
        if self.crop not in CROPS:
            raise UserError(f"crop is {self.crop!r}; choose one of {', '.join(CROPS)}")
        if self.bad_records not in BAD_RECORDS:
            raise UserError(f"bad_records is {self.bad_records!r}; choose one of {', '.join(BAD_RECORDS)}")
        if self.task is not None and self.bad_records != "stop":
            raise UserError("bad_records = 'skip' is for corpora; a task gives its examples in its own order")
        object.__setattr__(self, "sizes", check_sizes("DataConfig.sizes", self.sizes, self.image_size))
        if self.sizes:
            self._check_sizes()

    @property
    def encodes(self) -> bool:
        """Captions of some corpus are encoded as they are read; of a seqio Mixture it is not known here."""
        if isinstance(self.mixture, tuple):
            return any(share.store_dir is None for share in self.mixture)
        return self.mixture is None and self.store_dir is None

    def _check_sizes(self) -> None:
        if self.corpus_dir is None or self.crop != "none" or self.bad_records != "stop":
            raise UserError(
                f"DataConfig.sizes ({names_of(self.sizes)}) is of one corpus whose pictures are taken whole; give "
                "corpus_dir in place of mixture and task, crop 'none' and bad_records 'stop', or leave sizes empty"
            )
        for size in self.sizes:
            if self.low_res_size is not None and scaled(size, self.low_res_size, self.image_size) is None:
                raise UserError(
                    f"DataConfig.sizes: {size[0]}x{size[1]} must be divisible by {self.image_size // self.low_res_size}"
                    f", the ratio of image_size ({self.image_size}) and low_res_size ({self.low_res_size})"
                )

    def _check_mixture(self) -> None:
        if self.store_dir is not None:
            raise UserError("DataConfig.store_dir is of one corpus; in a mixture each CorpusShare has its own")
        if not isinstance(self.mixture, str):
            shares = tuple(self.mixture or ())
            object.__setattr__(self, "mixture", shares)
            if not shares or not all(isinstance(share, CorpusShare) for share in shares):
                raise UserError(f"DataConfig.mixture ({shares!r}) must be the name of a seqio Mixture or CorpusShares")
            names = [share.name for share in shares]
            if len({*names}) < len(names):
                raise UserError(f"DataConfig.mixture has sources of one name ({', '.join(map(str, names))}); name them")
        changes = tuple((step, tuple(rates)) for step, rates in self.rate_changes)
        object.__setattr__(self, "rate_changes", changes)
        steps = [step for step, _ in changes]
        for step, rates in changes:
            check_count("DataConfig.rate_changes: a step", step)
            _check_rates("DataConfig.rate_changes: a rate", rates)
        if steps != sorted({*steps}):
            raise UserError(f"DataConfig.rate_changes has steps {steps}; expected rising ones")
