"""ArrayRecord files, read by the numbers of their records.

A reader is never told why a file did not open: it then holds no records, as one of a damaged file does. The system is
asked instead, so that a lack of file handles is not taken for damage.
"""

import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Sequence

from array_record.python.array_record_module import ArrayRecordReader

from imagen_jax.errors import UserError

_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
# Opening a file of 50 000 records takes 20 times as long as reading one record: many stay open, far from all that a
# process may have.
_SHARE = 4
_LEAST_OPEN = 8


def open_records(path: str | os.PathLike[str]) -> ArrayRecordReader:
    """A reader of an ArrayRecord file; its handle is free when the reader is dropped.

    Raises:
      OSError: the system does not open the file.
    """
    reader = ArrayRecordReader(os.fspath(path), _OPTIONS)
    if reader.num_records():
        return reader
    with open(path, "rb"):
        pass
    return ArrayRecordReader(os.fspath(path), _OPTIONS)


class RecordFiles:
    """Record files that belong together; few are open at once. Several threads may read.

    Args:
      fix: what to do about a damaged file, the end of a message.
    """

    def __init__(self, fix: str):
        self._fix = fix
        self._lock = threading.Lock()
        self._open: OrderedDict[str, ArrayRecordReader] = OrderedDict()

    def read(self, path: str | os.PathLike[str], num_records: int, indices: Sequence[int] | None = None) -> list[bytes]:
        """Records of one file.

        Args:
          path: the file.
          num_records: how many it must hold.
          indices: which, in the order wanted; None: all.

        Raises:
          UserError: the file is damaged or cannot be opened, e.g. for want of file handles.
        """
        reader = self._reader(os.fspath(path), num_records)
        try:
            return reader.read_all() if indices is None else reader.read(list(indices))
        except RuntimeError as error:
            raise UserError(f"shard {path} is damaged ({error}); {self._fix}") from error

    def close(self) -> None:
        """Gives the file handles back; a later read opens what it needs."""
        with self._lock:
            self._open.clear()

    def _reader(self, path: str, num_records: int) -> ArrayRecordReader:
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
                return self._open[path]
            reader = self._opened(path)
            if reader.num_records() != num_records:
                raise UserError(
                    f"shard {path} holds {reader.num_records()} readable records; expected {num_records}; {self._fix}"
                )
            self._open[path] = reader
            # Dropped, not closed: another thread may be reading.
            while len(self._open) > max_open():
                self._open.popitem(last=False)
            return reader

    def _opened(self, path: str) -> ArrayRecordReader:
        try:
            return open_records(path)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._open:
                self._open.clear()
                return self._opened(path)
            raise UserError(f"shard {path} cannot be opened ({error.strerror}); {_opening_fix(error)}") from error


def max_open() -> int:
    """Readers that one `RecordFiles` keeps: a part of the handles that this process may have."""
    return max(_LEAST_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE)


def _opening_fix(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"the file is sound, but this process may have {allowed} files open: allow more (`ulimit -n 4096`)"
    return "fix its permissions or the path"
