"""Filters of raw pairs, written as one expression: `similarity >= 0.28 and min(width, height) >= 256`.

    condition   comparisons (also a < b < c, in, not in), and, or, not
    value       names, numbers, texts, True, False, (lists, of, values), + - * /, min, max, abs

The grammar is Python's, of which nothing else is accepted, and nothing is run as Python. The conditions that are joined
by `and` at the top are counted one by one: an example is dropped by the first that does not hold. One that asks for a
fact which the example does not have drops it too, and is counted as such; `or` and `and` ask from left to right, and no
further than they must.
"""

import ast
import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.data.caption_facts import CAPTION_FACTS
from imagen_jax.data.raw import Part, RawExample, Rejection, Source
from imagen_jax.errors import UserError
from imagen_jax.image_files import ImageError, header_of

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs}
_DEEPEST = 100
_GRAMMAR = "comparisons, and, or, not, in, + - * /, min, max, abs, names, numbers and texts in quotes"


class _MissingError(Exception):
    """An example does not have a fact; the message is its name."""


class _UnfitError(Exception):
    """The facts of an example do not fit a condition; the message says why."""


def filtered(source: Source, filters: Sequence[str]) -> Source:
    """The source without the examples that one of the filters drops; each is a rejection that names the condition.

    Names in a filter are the example's meta, `caption`, the names of CAPTION_FACTS, and `width` and `height`, which are
    those of the meta or, without, of the image file.

    Args:
      source: the raw pairs.
      filters: expressions, all of which must hold.

    Raises:
      UserError: one of them is no filter.
    """
    for one in filters:
        conditions_of(one)
    if not filters:
        return source
    parts = [_filtered_part(part, filters) for part in source.parts]
    return dataclasses.replace(source, parts=parts, settings={**source.settings, "filters": list(filters)})


def _filtered_part(part: Part, filters: Sequence[str]) -> Part:
    """A part with plain data as arguments, where the one that it filters has such."""
    whole = part if isinstance(part, functools.partial) else functools.partial(part)
    return functools.partial(_Filtered(whole.func), list(filters), list(whole.args), dict(whole.keywords))


@dataclasses.dataclass(frozen=True)
class _Filtered:
    """A function whose examples are filtered."""

    function: Callable[..., Iterable[RawExample | Rejection]]

    def __call__(
        self, filters: Sequence[str], arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> Iterator[RawExample | Rejection]:
        conditions = [condition for one in filters for condition in conditions_of(one)]
        for one in self.function(*arguments, **named):
            yield one if isinstance(one, Rejection) else _passed(one, conditions)


@functools.lru_cache
def conditions_of(expression: str) -> Sequence[tuple[str, ast.expr]]:
    """The conditions of a filter: the text and the tree of each.

    Raises:
      UserError: the text is no filter.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"filter {expression!r:.200} cannot be read ({error}); it may hold {_GRAMMAR}") from error
    _check(tree, expression)
    trees = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
    return [(ast.get_source_segment(expression.strip(), one) or ast.unparse(one), one) for one in trees]


def _check(node: ast.expr, expression: str, depth: int = 0) -> None:
    """Refuses what is not in the grammar, and what is nested too deep to be followed."""
    inner: Sequence[ast.expr]
    match node:
        case ast.BoolOp(values=inner) | ast.Tuple(elts=inner) | ast.List(elts=inner):
            pass
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            inner = [operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            inner = [left, right]
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
            inner = [left, *others]
        case ast.Call(func=ast.Name(id=name), args=inner, keywords=[]) if name in _FUNCTIONS:
            if len(inner) < 2 if name != "abs" else len(inner) != 1:
                raise UserError(f"filter {expression!r:.200}: {ast.unparse(node):.60} has {len(inner)} values")
        case ast.Name() | ast.Constant(value=bool() | int() | float() | str()):
            inner = []
        case _:
            what = f"{type(node).__name__} at {node.col_offset}" if depth else "all of it"
            raise UserError(f"filter {expression!r:.200} holds what none may ({what}); it may hold {_GRAMMAR}")
    if depth > _DEEPEST:
        raise UserError(f"filter {expression!r:.200} is nested more than {_DEEPEST} deep; write it shorter")
    for one in inner:
        _check(one, expression, depth + 1)


def _passed(one: RawExample, conditions: Sequence[tuple[str, ast.expr]]) -> RawExample | Rejection:
    for text, tree in conditions:
        try:
            holds = _value(tree, one)
            if not isinstance(holds, bool):
                raise _UnfitError(f"it gives {holds!r:.60}, which is neither true nor false")
        except _MissingError as missing:
            reason = f"no {missing}, which the filter asks for ({text})"
            return Rejection(source=one.key, reason=reason, dropped_by=f"no {missing}")
        except (_UnfitError, ArithmeticError) as error:
            return Rejection(source=one.key, reason=f"{text} cannot be told: {error}", dropped_by=f"unfit for {text}")
        except ImageError:
            return one  # The build says what is wrong with the image.
        if not holds:
            return Rejection(source=one.key, reason=f"not {text}", dropped_by=text)
    return one


def _value(node: ast.expr, one: RawExample) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return _fact(name, one)
        case ast.Tuple(elts=values) | ast.List(elts=values):
            return [_value(value, one) for value in values]
        case ast.BoolOp(op=op, values=values):
            ends = isinstance(op, ast.Or)
            return ends if any(_truth(value, one) == ends for value in values) else not ends
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _truth(operand, one)
        case ast.UnaryOp(operand=operand):
            return -_number(operand, one)
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_number(left, one), _number(right, one))
        case ast.Call(func=ast.Name(id=name), args=values):
            return _FUNCTIONS[name](*(_number(value, one) for value in values))
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _compared(_value(left, one), ops, others, one)
    raise AssertionError(node)


def _compared(left: Any, ops: Sequence[ast.cmpop], others: Sequence[ast.expr], one: RawExample) -> bool:
    for op, other in zip(ops, others, strict=True):
        right = _value(other, one)
        try:
            holds = _COMPARISONS[type(op)](left, right)
        except TypeError as error:
            raise _UnfitError(f"{left!r:.60} and {right!r:.60} cannot be compared") from error
        if not holds:
            return False
        left = right
    return True


def _truth(node: ast.expr, one: RawExample) -> bool:
    value = _value(node, one)
    if not isinstance(value, bool):
        raise _UnfitError(f"{value!r:.60} is neither true nor false")
    return value


def _number(node: ast.expr, one: RawExample) -> float | int:
    value = _value(node, one)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _UnfitError(f"{value!r:.60} is no number")
    return value


def _fact(name: str, one: RawExample) -> Any:
    caption = " ".join(one.caption.split())
    if name == "caption":
        return caption
    if name in CAPTION_FACTS:
        return CAPTION_FACTS[name](caption)
    if one.meta is not None and name in one.meta:
        return one.meta[name]
    if name in ("width", "height"):
        return _size(one)[name == "height"]
    raise _MissingError(name)


def _size(one: RawExample) -> tuple[int, int]:
    """Width and height of the image; of a file, only its header is read."""
    if isinstance(one.image, np.ndarray):
        return one.image.shape[1], one.image.shape[0]
    opened: Image.Image = header_of(one.image)
    return opened.size
