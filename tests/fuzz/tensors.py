"""Spoilt .safetensors files: the header and the tensors' bytes, each of them and both together."""

import json
import math
import random
import struct
from typing import Any

from tests.fuzz.mutate import changed, damaged, json_file

# Bytes of an element, as the format names them.
_DTYPES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
           "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F4": 1, "F99": 4, "f32": 4,
           "": 4}  # fmt: skip


def safetensors(chance: random.Random, content: bytes) -> bytes:
    """Another header, of the right length or not, one tensor of another type or shape, or damage anywhere."""
    kind = chance.randrange(10)
    if kind < 2:
        return damaged(chance, content)
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    if kind < 4:
        header = changed(chance, header)
    elif kind < 7:
        data = _another_tensor(chance, header, data)
    elif kind < 9:
        _another_place(chance, header, len(data))
    else:
        header[chance.choice(sorted(header))] = json.loads("[" * (deep := chance.choice((3, 200))) + "]" * deep)
    made = json.dumps(header).encode()
    if chance.random() < 0.05:
        made = b"[" * 100_000
    if chance.random() < 0.1:
        made += b" " * (-len(made) % 8)
    stated = len(made) if chance.random() < 0.9 else chance.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(made) + 8))
    return struct.pack("<Q", stated) + made + data


def _another_tensor(chance: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    """Gives one tensor another type or shape, and the file as many bytes as that needs."""
    names = sorted(header.keys() - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
    pieces = {name: data[slice(*header[name]["data_offsets"])] for name in names}
    one = header[name := chance.choice(names)]
    if chance.random() < 0.6:
        one["dtype"] = chance.choice(sorted(_DTYPES))
    else:
        one["shape"] = chance.choice(([], [0], [1, *one["shape"]], [*one["shape"], 1], one["shape"][::-1], [0, 2**40]))
    size = math.prod(one["shape"]) * _DTYPES.get(one["dtype"], 4)
    pieces[name] = (pieces[name] * (size // max(len(pieces[name]), 1) + 1))[:size]
    at = 0
    for name in names:
        header[name]["data_offsets"] = [at, at := at + len(pieces[name])]
    return b"".join(pieces[name] for name in names)


def _another_place(chance: random.Random, header: dict[str, Any], size: int) -> None:
    """Gives one tensor the place of another, or one that is none."""
    names = sorted(header.keys() - {"__metadata__"})
    one, other = header[chance.choice(names)], header[chance.choice(names)]
    begin, end = one["data_offsets"]
    numbers = (0, -1, begin - 4, begin + 4, end + 4, size, size + 4, 2**63, 2**64 - 1, 2**64, 1.5, "0", None)
    kind = chance.randrange(4)
    if kind == 0:
        one["data_offsets"] = list(other["data_offsets"])
    elif kind == 1:
        one["data_offsets"] = [end, begin]
    elif kind == 2:
        one["data_offsets"] = [chance.choice((begin, *numbers)), chance.choice((end, *numbers))]
    else:
        one["shape"] = [chance.choice((*numbers, 2**32, 3)) for _ in one["shape"]]


def weights(chance: random.Random, content: bytes) -> bytes:
    """A changed JSON file, or a changed .safetensors file."""
    return json_file(chance, json.loads(content)) if content.startswith(b"{") else safetensors(chance, content)
