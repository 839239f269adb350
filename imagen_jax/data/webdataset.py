"""Pairs in tar files, as img2dataset and webdataset write them: members KEY.jpg, KEY.txt and KEY.json.

Nothing is unpacked. A member's key is its name up to the first dot of its last part, and what follows is its kind. A
tar is one part of the source, so that workers share the tars; one in a bucket is copied here first.
"""

import dataclasses
import functools
import glob
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.checks import check_path
from imagen_jax.data.digests import md5_of
from imagen_jax.data.lists import LIST_SUFFIXES
from imagen_jax.data.metadata import captions_of, kept_facts
from imagen_jax.data.raw import RawExample, Rejection, Source, check_val_fraction, split_of
from imagen_jax.data.sources import image_suffixes
from imagen_jax.errors import UserError
from imagen_jax.files import StrPath, as_path, file_system, files_under, is_remote, local_copy

# What img2dataset writes, and the other names of the same kinds.
IMAGE_KINDS = ("jpg", "jpeg", "png", "webp")
_BLOCK = 512
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_NAMES = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tar:
    """A tar file: where it is, what messages call it, and the folder that stands before its keys."""

    path: str
    name: str
    folder: str


def holds_tars(place: StrPath) -> bool:
    """Tells if a place is a tar file, a pattern of them, or a folder with some in it or further down and no list."""
    if os.fspath(place).endswith(".tar"):
        return True
    if not as_path(place).is_dir():
        return False
    names = files_under(place)
    return any(name.endswith(".tar") for name in names) and not any(f"captions{end}" in names for end in LIST_SUFFIXES)


def tar_source(place: StrPath, *, val_fraction: float = 0.0, seed: int = 0) -> Source:
    """The pairs in tar files; see the module.

    Keys begin with the folder that a tar lies in, from `place` on, so that several downloads may lie side by side.

    Args:
      place: a tar file; a folder, of which all tars are read, further down too; or a pattern such as
        "laion/{00000..00099}.tar" or "laion/*.tar".
      val_fraction: part of the images, in [0, 1), that goes to split "val", chosen by a hash of the key.
      seed: of that choice.

    Raises:
      UserError: there is no such tar. What is wrong within one is a rejection.
    """
    check_path("the tar files", place)
    check_val_fraction(val_fraction)
    tars = _tars_at(os.fspath(place))
    digest = hashlib.sha256()
    for tar in tars:
        digest.update(repr((tar.folder, os.path.basename(tar.path), md5_of(tar.path))).encode())
    return Source(
        parts=[functools.partial(_tar_part, tar.path, tar.name, tar.folder, val_fraction, seed) for tar in tars],
        num_examples=0,  # only reading them tells
        settings={"kind": "tars", "digest": digest.hexdigest(), "val_fraction": val_fraction, "seed": seed},
    )


def _tars_at(place: str) -> list[_Tar]:
    if as_path(place).is_dir():
        root = place.rstrip("/")
        found = files_under(place)
        names = [name for name in found if name.endswith(".tar")]
        if not names:
            raise UserError(f"folder {place!r} holds no .tar files; check the path")
        image = next((name for name in found if Path(name).suffix.lower() in image_suffixes()), None)
        if image is not None:
            raise UserError(
                f"folder {place!r} holds tar files, such as {names[0]}, and images, such as {image}; "
                f"for the tars give {root + '/*.tar'!r}, for the images move the tars elsewhere"
            )
        return [_Tar(path=f"{root}/{name}", name=name, folder=_folder(name)) for name in names]
    paths: dict[str, None] = {}
    for pattern in _without_braces(place):
        paths.update(dict.fromkeys(_matching(pattern) if glob.has_magic(pattern) else [pattern]))
    if not paths or not any(as_path(path).is_file() for path in paths):
        raise UserError(f"tar file {place!r} does not exist; check the path, and put a pattern in quotes")
    # The part of the place that no pattern is in; keys begin below it.
    root = re.split(r"[{*?\[]", place, maxsplit=1)[0].rpartition("/")[0]
    names = [path.removeprefix(root).lstrip("/") for path in paths]
    return [_Tar(path=path, name=name, folder=_folder(name)) for path, name in zip(paths, names, strict=True)]


def _folder(name: str) -> str:
    folder = name.rpartition("/")[0]
    return f"{folder}/" if folder else ""


def _without_braces(pattern: str) -> list[str]:
    """The patterns that {00..12} and {a,b} stand for, as a shell expands them; other braces stand for themselves."""
    expanded, final = [pattern], []
    while expanded:
        one = expanded.pop(0)
        found = next((m for m in _BRACES.finditer(one) if "," in m[1] or _RANGE.fullmatch(m[1])), None)
        if found is None:
            final.append(one)
            continue
        ends = _RANGE.fullmatch(found[1])
        if ends is None:
            words: Sequence[str] = found[1].split(",")
        elif abs(int(ends[2]) - int(ends[1])) >= _MOST_NAMES:
            raise UserError(f"pattern {pattern!r} stands for more than {_MOST_NAMES} files; shorten {found[0]}")
        else:
            width = max(len(end) for end in ends.groups()) if any(e.startswith("0") for e in ends.groups()) else 0
            words = [f"{number:0{width}d}" for number in range(int(ends[1]), int(ends[2]) + 1)]
        expanded = [one[: found.start()] + word + one[found.end() :] for word in words] + expanded
        if len(expanded) + len(final) > _MOST_NAMES:
            raise UserError(f"pattern {pattern!r} stands for more than {_MOST_NAMES} files; shorten it")
    return final


def _matching(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return sorted(glob.glob(pattern))
    scheme = pattern.partition("://")[0]
    return sorted(f"{scheme}://{name}" for name in file_system(pattern).glob(pattern))


def _tar_part(path: str, name: str, folder: str, val_fraction: float, seed: int) -> Iterator[RawExample | Rejection]:
    try:
        copy = local_copy(path)
        if not Path(copy).is_file():
            raise FileNotFoundError("no such file")
        opened = tarfile.open(copy, "r:")  # noqa: SIM115 (the errors below name the tar)
    except (FileNotFoundError, tarfile.TarError) as error:
        yield Rejection(source=name, reason=f"not a tar file that can be read ({error})")
        return
    with opened:
        groups, rejections = _grouped(opened, name)
        yield from rejections
        for key, members in groups.items():
            whole = folder + key
            try:
                yield from _examples(opened, members, whole, split_of(f"{seed}/{whole}", val_fraction))
            except _UnusableError as error:
                yield Rejection(source=_shown(f"{name}: {key}"), reason=_shown(str(error)))


class _UnusableError(ValueError):
    """An example cannot be used; the message says why."""


_Group = dict[str, tarfile.TarInfo]


def _grouped(tar: tarfile.TarFile, name: str) -> tuple[dict[str, _Group], list[Rejection]]:
    """The members by key and kind, in the order of the tar, and what is wrong with the others."""
    groups: dict[str, _Group] = {}
    rejections = []
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            rejections.append(_damaged(name, tar.offset, str(error)))
            break
        if member is None:
            # tarfile takes a header that it cannot read for the end, and so does it the end of the file.
            if not _ends_here(tar):
                rejections.append(_damaged(name, tar.offset, "no end mark"))
            break
        if member.size < 0:
            rejections.append(_damaged(name, member.offset, "a member of negative size"))
            break
        problem = _problem(member)
        key, kind = _key_and_kind(member.name)
        if problem:
            rejections.append(Rejection(source=_shown(f"{name}: {member.name}"), reason=problem))
        elif key and kind and member.isreg():
            if kind in groups.setdefault(key, {}):
                reason = "another member has the same name; the first one counts"
                rejections.append(Rejection(source=_shown(f"{name}: {member.name}"), reason=reason))
            else:
                groups[key][kind] = member
    return groups, rejections


def _damaged(name: str, offset: int, why: str) -> Rejection:
    reason = f"the tar is cut or damaged at byte {offset} ({why}); examples behind that are lost, download it again"
    return Rejection(source=name, reason=reason)


def _ends_here(tar: tarfile.TarFile) -> bool:
    file: Any = tar.fileobj
    file.seek(tar.offset)
    return file.read(_BLOCK) == bytes(_BLOCK)


def _problem(member: tarfile.TarInfo) -> str:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "the name leads out of the tar"
    if member.issym() or member.islnk():
        return "a link, not a file"
    if not (member.isreg() or member.isdir()) or member.issparse():
        return "not a plain file"
    return ""


def _key_and_kind(name: str) -> tuple[str, str]:
    """("a/000", "jpg") for "./a/000.jpg"; hidden files have no key, and those without a dot no kind."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, kind = base.partition(".")
    return (f"{folder}/{stem}" if folder and stem else stem), kind.lower()


def _examples(tar: tarfile.TarFile, members: _Group, key: str, split: str) -> Iterator[RawExample]:
    facts = _facts(tar, members)
    captions = _captions(tar, members, facts)
    kind = next((kind for kind in members if kind in IMAGE_KINDS), None)
    if kind is None:
        raise _UnusableError(f"no image ({', '.join(IMAGE_KINDS)}), only {', '.join(members)}")
    image, kept = _content(tar, members[kind]), kept_facts(facts)
    for number, (caption, weight) in enumerate(captions):
        name = f"{key}#{number}" if number else key
        yield RawExample(key=name, image=image, caption=caption, split=split, meta={**kept, **weight} or None)


def _facts(tar: tarfile.TarFile, members: _Group) -> dict[str, Any]:
    if "json" not in members:
        return {}
    try:
        facts = json.loads(_content(tar, members["json"]))
    except (ValueError, RecursionError) as error:
        if isinstance(error, _UnusableError):
            raise
        raise _UnusableError(f"its .json is not JSON ({error})") from error
    if not isinstance(facts, dict):
        raise _UnusableError("its .json is not a JSON object")
    return facts


def _captions(tar: tarfile.TarFile, members: _Group, facts: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The captions with their weights: those listed in the .json, or the .txt, or the one in the .json."""
    try:
        if "captions" in facts:
            return captions_of(facts["captions"])
        if "txt" in members:
            return captions_of(_content(tar, members["txt"]).decode("utf-8-sig"))
        if isinstance(facts.get("caption"), str):
            return captions_of(facts["caption"])
    except UnicodeDecodeError as error:
        raise _UnusableError(f"its .txt is not UTF-8 ({error})") from error
    except ValueError as error:
        raise _UnusableError(str(error)) from error
    raise _UnusableError("no caption: neither a .txt nor a text named caption in a .json")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    try:
        file = tar.extractfile(member)
        return b"" if file is None else file.read()
    except (tarfile.TarError, OSError) as error:
        raise _UnusableError(f"its .{_key_and_kind(member.name)[1]} cannot be read ({error})") from error


def _shown(name: str) -> str:
    """A name for messages, also where its bytes are no UTF-8."""
    return name.encode(errors="backslashreplace").decode()
