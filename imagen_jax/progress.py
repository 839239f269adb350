"""Progress of long work: a bar on a terminal, plain lines otherwise."""

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 10.0


class _Bar(tqdm):
    """A bar by a clock that nobody sets: by the wall clock, one set back an hour would stand still for that long."""

    def __init__(self, **settings: Any):
        # Else a thread of the library's looks at the bar by the wall clock.
        super().__init__(**settings, miniters=1)
        self._time = time.monotonic
        self.start_t = self.last_print_t = self._time()


class Progress:
    """Counts towards `total` and shows it on stderr.

    Args:
      total: number of units that make the work whole; 0 where it is not known.
      label: what is being done, e.g. "train base".
      unit: name of one unit, e.g. "step".
      initial: units done before this process started (a resumed run).
      shown: False counts in silence: of several processes that do the same work, one tells.
    """

    def __init__(self, total: int, label: str, unit: str = "it", initial: int = 0, shown: bool = True):
        self._total, self._label, self._unit, self._shown = total, label, unit, shown
        self._done = self._initial = initial
        self._start = self._last_line = time.monotonic()
        bar = shown and sys.stderr.isatty()
        self._bar = _Bar(total=total or None, desc=label, unit=unit, initial=initial) if bar else None

    def __enter__(self) -> "Progress":
        return self

    def update(self, n: int = 1, **values: float) -> None:
        """Adds `n` finished units; `values` (e.g. loss=0.1) are shown beside the count."""
        self._done += n
        if self._bar is not None:
            if values:
                self._bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()}, refresh=False)
            self._bar.update(n)
            return
        now = time.monotonic()
        due = now - self._last_line >= LINE_EVERY_S or 0 < self._total <= self._done
        if not self._shown or not due:
            return
        self._last_line = now
        rate = (self._done - self._initial) / max(now - self._start, 1e-9)
        line = f"{self._label}: {self._done} {self._unit}  {rate:.3g}/s"
        if self._total:
            left = (self._total - self._done) / rate if rate > 0 else float("inf")
            line = f"{self._label}: {self._done}/{self._total} {self._unit}  {rate:.3g}/s  {left:.0f} s left"
        shown = "".join(f"  {name} {value:.4g}" for name, value in values.items())
        print(line + shown, file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
