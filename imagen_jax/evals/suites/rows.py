"""Prompts of a suite, read from the user's own file of it; a bad row is named by file and line.

The files, each as its publisher offers it:

- DrawBench (arXiv 2205.11487): CSV with the columns Prompts and Category.
- PartiPrompts (arXiv 2206.10789): TSV with the columns Prompt, Category, Challenge, Note; quotation marks are text.
- GenEval (arXiv 2310.11513): evaluation_metadata.jsonl, objects of tag, include, perhaps exclude, and prompt.
- GenEval 2 (arXiv 2512.16853): geneval2_data.jsonl, objects of prompt, atom_count, vqa_list and skills.
- T2I-CompBench (arXiv 2307.06350): a .txt of one category with a prompt a line; what follows a tab is passed over.
- DPG-Bench (arXiv 2403.05135): a folder of .txt files, each one prompt.
"""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from imagen_jax.errors import UserError
from imagen_jax.files import as_path, files_under, is_unicode

_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteRow:
    """One prompt.

    Args:
      prompt: what is drawn.
      category: what the suite counts it under.
      where: file and line, for messages.
      name: the file's stem, of a suite with a file a prompt; else empty.
      fields: the JSON object that it stands in; empty for other kinds of file.
      line: that object's text as it stands in the file.
    """

    prompt: str
    category: str
    where: str
    name: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    line: str = ""


def read_drawbench(path: str) -> list[SuiteRow]:
    """The prompts of DrawBench's CSV."""
    return _from_table(path, _csv_rows(path), "Prompts")


def read_parti(path: str) -> list[SuiteRow]:
    """The prompts of PartiPrompts' TSV."""
    return _from_table(path, _tsv_rows(path), "Prompt")


def read_compbench(path: str) -> list[SuiteRow]:
    """The prompts of one list of T2I-CompBench; the category is the list's name."""
    category = os.path.splitext(os.path.basename(path))[0]
    rows = []
    for number, line in _lines(path):
        where = f"{path} line {number}"
        rows.append(SuiteRow(prompt=_prompt(where, line.split("\t")[0]), category=category, where=where))
    return _some(path, rows)


def read_dpg(path: str) -> list[SuiteRow]:
    """The prompts of DPG-Bench's folder, in the order of their files' names."""
    try:
        names = [name for name in files_under(path) if name.endswith(".txt") and "/" not in name]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); give the folder with DPG-Bench's .txt files") from error
    if not names:
        raise UserError(f"{path} is no folder with .txt files; give DPG-Bench's folder of prompts, a file a prompt")
    rows = []
    for name in names:
        where = f"{path.rstrip('/')}/{name}"
        stem = name.removesuffix(".txt")
        if not stem or "." in stem:
            raise UserError(f"{where}: DPG-Bench's scorer takes a name up to its first dot; rename the file")
        rows.append(SuiteRow(prompt=_prompt(where, _text(where)), category="", where=where, name=stem))
    return rows


def read_geneval(path: str) -> list[SuiteRow]:
    """The prompts of GenEval's evaluation_metadata.jsonl; the category is the tag."""
    rows = []
    for where, line, fields in _objects(path):
        tag, prompt = (_field(where, fields, name, str) for name in ("tag", "prompt"))
        for name in ("include", "exclude"):
            if name in fields or name == "include":
                _check_clauses(where, name, fields.get(name))
        rows.append(SuiteRow(prompt=_prompt(where, prompt, True), category=tag, where=where, fields=fields, line=line))
    return _some(path, rows)


def read_geneval2(path: str) -> list[SuiteRow]:
    """The prompts of GenEval 2's geneval2_data.jsonl; the category is the number of atoms."""
    rows = []
    for where, line, fields in _objects(path):
        prompt, atoms = _field(where, fields, "prompt", str), _field(where, fields, "atom_count", int)
        questions, skills = (_field(where, fields, name, list) for name in ("vqa_list", "skills"))
        if not all(_is_texts(one) and len(one) == 2 for one in questions) or not questions:
            _refuse(where, "vqa_list must be pairs of question and answer")
        if not _is_texts(skills) or len(skills) != len(questions):
            _refuse(where, f"skills must be {len(questions)} texts, one a question")
        rows.append(
            SuiteRow(prompt=_prompt(where, prompt, True), category=str(atoms), where=where, fields=fields, line=line)
        )
    return _some(path, rows)


def _text(path: str) -> str:
    """The text of a file, without a byte-order mark."""
    try:
        content = as_path(path).read_bytes().removeprefix(_BOM)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); give the suite's own file") from error
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} line {number}: byte {content[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        ) from error


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers; only a line feed ends one, as JSON may hold other ends."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _csv_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Line where it begins and fields of each row."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path} line {line}: {error}; mend the quotation marks of this row (one inside of a text is written twice)"
        ) from error


def _tsv_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in _lines(path):
        yield number, line.split("\t")


def _from_table(path: str, rows: Iterator[tuple[int, list[str]]], column: str) -> list[SuiteRow]:
    """Rows of a table by their header."""
    _, header = next(rows, (1, []))
    for name in (column, "Category"):
        if header.count(name) != 1:
            raise UserError(
                f"{path} line 1: the header has {header.count(name)} columns {name}; expected one each of {column} and "
                f"Category, and it has {', '.join(header)[:200] or 'nothing'}"
            )
    found = []
    for line, fields in rows:
        where = f"{path} line {line}"
        if len(fields) != len(header):
            _refuse(where, f"{len(fields)} fields, the header has {len(header)}")
        row = dict(zip(header, fields, strict=True))
        found.append(SuiteRow(prompt=_prompt(where, row[column]), category=row["Category"].strip(), where=where))
    return _some(path, found)


def _objects(path: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Where it stands, text and content of each JSON object of a file with one a line."""
    for number, line in _lines(path):
        where = f"{path} line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); mend that line") from error
        if not isinstance(fields, dict):
            _refuse(where, "not a JSON object")
        yield where, line.strip(), fields


def _field(where: str, fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = {str: "a text", int: "a whole number", list: "a list"}
        got = ascii(value)[:80] if name in fields else "nothing"
        _refuse(where, f"{name} is {got}, expected {kinds[kind]}")
    return value


def _check_clauses(where: str, name: str, clauses: Any) -> None:
    """Refuses what is not a list of GenEval's clauses: class and count, perhaps color and position."""
    if not isinstance(clauses, list) or (name == "include" and not clauses):
        _refuse(where, f"{name} must be a list of objects with class and count")
    for number, one in enumerate(clauses):
        place = f"{where}, {name}[{number}]"
        if not isinstance(one, dict):
            _refuse(place, "not a JSON object")
        _field(place, one, "class", str)
        if _field(place, one, "count", int) < 0:
            _refuse(place, "count is negative")
        if "color" in one:
            _field(place, one, "color", str)
        if "position" in one:
            position = one["position"]
            good = isinstance(position, list) and [type(part) for part in position] == [str, int]
            if not good or not 0 <= position[1] < number:
                _refuse(place, "position must be a relation and the number of an earlier clause")


def _is_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(one, str) for one in values)


def _prompt(where: str, text: str, verbatim: bool = False) -> str:
    """A prompt that can be drawn: without the blanks around it, unless it is a key to other files."""
    if not text.strip():
        _refuse(where, "no prompt")
    if not is_unicode(text):
        _refuse(where, "the prompt holds half a character")
    return text if verbatim else text.strip()


def _some(path: str, rows: Sequence[SuiteRow]) -> list[SuiteRow]:
    if not rows:
        raise UserError(f"{path} has no prompts; give the suite's own file")
    return list(rows)


def _refuse(where: str, problem: str) -> NoReturn:
    raise UserError(f"{where}: {problem}; mend that row")
