"""TensorBoard event files without TensorFlow: scalars and PNG images.

An event file is a sequence of records, each a serialized `Event` protocol buffer framed as
    uint64 length | masked crc32c(length) | bytes | masked crc32c(bytes)
Only the fields below are used, so they are encoded here by hand:
    Event         wall_time=1 (double)  step=2 (varint)  file_version=3  summary=5  session_log=7
    Summary       value=1, repeated
    Value         tag=1 (string)  simple_value=2 (float)  image=4
    Image         height=1  width=2  colorspace=3 (varints)  encoded_image_string=4
    SessionLog    status=1 (START = 1)
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """CRC-32C, rotated and offset as the record format wants it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _event(step: int, field: int, payload: bytes) -> bytes:
    return _varint(1 << 3 | 1) + struct.pack("<d", time.time()) + _int(2, step) + _bytes(field, payload)


class EventFile:
    """One event file of a log directory.

    Args:
      directory: TensorBoard log directory, made when missing.
      start_step: step this process goes on from; TensorBoard drops what an earlier process wrote after it.
    """

    def __init__(self, directory: str | os.PathLike[str], start_step: int = 0):
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        # Sorted by name: a later process must come later.
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._stream = (path / name).open("wb")
        self._write(_event(0, 3, b"brain.Event:2"))
        self._write(_event(start_step + 1, 7, _int(1, 1)))

    def _write(self, record: bytes) -> None:
        length = struct.pack("<Q", len(record))
        self._stream.write(length + struct.pack("<I", masked_crc32c(length)))
        self._stream.write(record + struct.pack("<I", masked_crc32c(record)))
        self._stream.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to every named curve."""
        summary = b"".join(
            _bytes(1, _bytes(1, tag.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", value))
            for tag, value in values.items()
        )
        self._write(_event(step, 5, summary))

    def image(self, step: int, tag: str, png: bytes, height: int, width: int) -> None:
        """Adds one RGB image, given as the bytes of a PNG file."""
        image = _int(1, height) + _int(2, width) + _int(3, 3) + _bytes(4, png)
        self._write(_event(step, 5, _bytes(1, _bytes(1, tag.encode()) + _bytes(4, image))))

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()
