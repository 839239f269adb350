"""Where each record of an ArrayRecord file lies, so that one request reads it from a bucket.

The files are Riegeli's: chunks of a header and one record each, as the writers of corpora and stores make them (one
record a group, uncompressed), cut by a header at every 64 KiB. An index has an entry a record: where its bytes begin in
the file, how many it has, and their CRC-32, which the library's own check stands for where it reads the file itself.
Source: github.com/google/riegeli, doc/riegeli_records_file_format.md.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.files import write_bytes

ENTRY = np.dtype([("start", "<u8"), ("length", "<u4"), ("crc32", "<u4")])
SUFFIX = ".index"
_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_CHUNK_HEADER = struct.Struct("<QQQQQ")
_RECORDS, _UNCOMPRESSED = ord("r"), 0


def index_of(path: str | os.PathLike[str], num_records: int) -> np.ndarray:
    """The index of a file on this machine.

    Args:
      path: the file.
      num_records: how many records it holds.

    Returns:
      [num_records] of ENTRY.

    Raises:
      UserError: the file is not of one uncompressed record a group.
      OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        found = [entry for _, entry in zip(range(num_records), _entries(file), strict=False)]
    if len(found) != num_records:
        raise UserError(
            f"{os.fspath(path)} has {len(found)} records that can be read one by one; expected {num_records}, written "
            "one a group and uncompressed"
        )
    return np.array(found, ENTRY)


def write_index(path: str | os.PathLike[str], num_records: int) -> dict[str, Any]:
    """Writes the index of a file on this machine beside it.

    Args:
      path: the file.
      num_records: how many records it holds.

    Returns:
      The index's own "file" (a name), "num_bytes" and "sha256".

    Raises:
      UserError: the file is not of one uncompressed record a group.
      OSError: it cannot be read, or the index not be written.
    """
    content = index_of(path, num_records).tobytes()
    write_bytes(f"{os.fspath(path)}{SUFFIX}", content)
    name = os.path.basename(path)
    return {"file": f"{name}{SUFFIX}", "num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def span(entry: np.void) -> tuple[int, int]:
    """First byte of a record in its file, and the byte after its last, block headers between them included."""
    start, length = int(entry["start"]), int(entry["length"])
    return start, _after(start, length)


def cut(content: bytes, entry: np.void) -> bytes | None:
    """The record in the bytes of its span; None if they are not those that were written."""
    start, length = int(entry["start"]), int(entry["length"])
    pieces, at = [], start
    while at < start + len(content):
        end = min(at + _BLOCK - at % _BLOCK, start + len(content))
        pieces.append(content[at + (_BLOCK_HEADER if at % _BLOCK == 0 else 0) - start : end - start])
        at = end
    record = b"".join(pieces)
    return record if len(record) == length and zlib.crc32(record) == entry["crc32"] else None


def _entries(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    at = 0
    while True:
        header, data_at = _read(file, at, _CHUNK_HEADER.size)
        if len(header) < _CHUNK_HEADER.size:
            return
        _, num_bytes, _, kind, _ = _CHUNK_HEADER.unpack(header)
        data, after = _read(file, data_at, num_bytes)
        if kind & 0xFF == _RECORDS and kind >> 8 == 1 and data[0] == _UNCOMPRESSED:
            num_sizes, sizes_at = _varint(data, 1)
            length, _ = _varint(data, sizes_at)
            record = data[sizes_at + num_sizes :]
            if len(record) != length:
                return
            start = _after(data_at, sizes_at + num_sizes)
            yield start, length, zlib.crc32(record)
        at = after


def _read(file: BinaryIO, at: int, num_bytes: int) -> tuple[bytes, int]:
    """Bytes from a place on without the block headers between them, and the place after them."""
    pieces = []
    while num_bytes:
        if at % _BLOCK == 0:
            at += _BLOCK_HEADER
        take = min(num_bytes, _BLOCK - at % _BLOCK)
        file.seek(at)
        piece = file.read(take)
        pieces.append(piece)
        if len(piece) < take:
            break
        at, num_bytes = at + take, num_bytes - take
    return b"".join(pieces), at


def _after(at: int, num_bytes: int) -> int:
    """The place that is `num_bytes` of content after another."""
    while num_bytes:
        if at % _BLOCK == 0:
            at += _BLOCK_HEADER
        take = min(num_bytes, _BLOCK - at % _BLOCK)
        at, num_bytes = at + take, num_bytes - take
    return at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
