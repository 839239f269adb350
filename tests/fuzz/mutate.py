"""Damaged and odd inputs, each the arithmetic of a random generator's seed.

No library of property-based tests: nothing here needs its shrinking, a case is found again by its number alone, and a
run of 10 000 cases a door depends on nothing that is not installed with the program.
"""

import copy
import json
import random
import struct
from collections.abc import Sequence
from typing import Any

ODD_TEXTS = (
    *("", " ", "\t", "\n", "\r\n", "\0", "a\0b", "\x1b[31m", "\x7f", "\ufeff", "\u200b", "\u2028", "\ufffd"),
    *("\U0010ffff", "é", "e\u0301", "ß", "İ", "ﬃ", "漢字", "👩\u200d👧", "\u202eabc", "a" * 300, "é" * 3000),
    *("\ud800", "\udc80x", "..", "../x", "/", "/etc/passwd", "~", "~root", ".", "a/b", "a\\b", "C:\\x", "gs://b/x"),
    *("file:///x", "-", "--", "-1", "None", "True", "true", "null", "nan", "inf", "-inf", "1e999", "1e-999", "0x10"),
    *("1_0", "٣", "²", "1,2", ",", ",,", "%", "%s", "%(x)s", "{}", "{0}", "@", "@x", "@x()", "%X", "'", '"', "'''"),
    *("\\", "#", "a=b", "=", "[", "(", "{", "]", "__class__", "__init__", "os.system('x')", "9" * 30, "9" * 5000),
    *("-" * 50, "[" * 2000, "(" * 2000),
)
_ODD_NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63 - 1, 2**63, 2**64),
    *(-(2**63), -(2**63) - 1, 10**30, 10**400, 0.0, -0.0, 0.5, 1.5, -1.5, 1e-300, 1e300, 1e39),
    *(float("inf"), float("-inf"), float("nan")),
)


def odd_text(chance: random.Random) -> str:
    """A text that programs stumble over, or a few of them after each other."""
    if chance.random() < 0.7:
        return chance.choice(ODD_TEXTS)
    return "".join(chance.choice(ODD_TEXTS) for _ in range(chance.randint(2, 4)))


def odd_value(chance: random.Random) -> Any:
    """A JSON value of any type."""
    kind = chance.randrange(8)
    if kind < 3:
        return chance.choice(_ODD_NUMBERS)
    if kind < 5:
        return odd_text(chance)
    if kind == 5:
        return chance.choice((None, True, False))
    if kind == 6:
        return [odd_value(chance) for _ in range(chance.randrange(3))]
    return {odd_text(chance): odd_value(chance) for _ in range(chance.randrange(3))}


def damaged(chance: random.Random, content: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Bytes with one to four wounds: flips, cuts, repeats, numbers and pieces of other files.

    Args:
      chance: the source of every choice.
      content: a whole file.
      others: files whose pieces are spliced in.
    """
    body = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(body) + 1)
        # The head of a file says what the rest means.
        at = at if chance.random() < 0.6 else min(at, chance.randrange(64))
        to = min(len(body), at + chance.choice((1, 2, 4, 16, 256)))
        kind = chance.randrange(7)
        if kind == 0:
            body[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1 and at < len(body):
            body[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del body[at:]
        elif kind == 3:
            del body[at:to]
        elif kind == 4:
            body[at:at] = body[at:to] * chance.choice((1, 2, 50))
        elif kind == 5:
            form = chance.choice("<>") + chance.choice("bhiq")
            size = struct.calcsize(form)
            number = chance.choice((0, 1, -1, 2 ** (8 * size - 1) - 1, -(2 ** (8 * size - 1)), chance.randrange(128)))
            body[at : at + size] = struct.pack(form, number)
        elif others:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            body[at:to] = other[start : start + chance.choice((4, 32, 512))]
    return bytes(body)


def changed(chance: random.Random, tree: Any) -> Any:
    """A JSON tree with one to three changes: other values, types, names, lengths and depths."""
    tree = copy.deepcopy(tree)
    for _ in range(chance.randint(1, 3)):
        holder, key = _place(chance, tree)
        if holder is None:
            return odd_value(chance)
        kind = chance.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[odd_text(chance)] = holder.pop(key)
        elif kind == 1:
            holder.append(copy.deepcopy(holder[key]))
        elif kind == 2:
            holder[key] = [holder[key]]
        elif kind == 3:
            holder[key] = str(holder[key])
        elif kind == 4 and isinstance(holder, dict):
            holder[odd_text(chance)] = odd_value(chance)
        elif kind == 5:
            other, place = _place(chance, tree)
            holder[key] = copy.deepcopy(other[place]) if other else None
        else:
            holder[key] = odd_value(chance)
        if not isinstance(tree, dict | list) or not tree:
            break
    return tree


def _place(chance: random.Random, tree: Any) -> tuple[Any, Any]:
    """A node of a tree: what holds it, and its key or index there."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            walk(node[key])

    walk(tree)
    return chance.choice(places) if places else (None, None)


def json_file(chance: random.Random, tree: Any) -> bytes:
    """The bytes of a changed tree, now and then damaged as bytes, too deep, or of another encoding."""
    kind = chance.randrange(20)
    if kind == 0:
        return b"[" * chance.choice((10, 100_000))
    if kind == 1:
        return json.dumps(tree).encode(chance.choice(("utf-16", "utf-8-sig", "utf-32")))
    if kind < 6:
        return damaged(chance, json.dumps(tree).encode())
    return json.dumps(changed(chance, tree), ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass")
