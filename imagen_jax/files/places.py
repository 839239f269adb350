"""Where files lie: on this machine, or in a bucket as gs://bucket/name or s3://bucket/name, behind one kind of path.

Buckets are read and written through gcsfs and s3fs by fsspec and etils.epath, and through tensorstore: in every mode,
also where TensorFlow with a way of its own is installed. So the variables STORAGE_EMULATOR_HOST and
TENSORSTORE_GCS_HTTP_URL, or AWS_ENDPOINT_URL, alone send all of it to another server.
"""

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

StrPath = str | os.PathLike[str]
# epath.Path is no pathlib.Path, but has what is used of it.
if TYPE_CHECKING:
    AnyPath = Path
else:
    AnyPath = Path | epath.Path
SCHEMES = ("gs", "s3")
_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)})://")
# epath would otherwise take TensorFlow's file system for buckets; it reads this once, at its first use.
os.environ["EPATH_USE_TF"] = "false"


def is_remote(path: StrPath) -> bool:
    """Tells if a path is an address in a bucket."""
    return _ADDRESS.match(os.fspath(path)) is not None


def as_path(path: StrPath) -> AnyPath:
    """A path with the methods of pathlib.Path, those of epath.Path where it lies in a bucket.

    Of these, code that serves both uses: /, name, stem, suffix, parent, exists, is_file, is_dir, iterdir, glob (one
    level), open with "rb", "r" and "wb", read_bytes, read_text, unlink, relative_to; the functions of this room for
    the others.
    """
    if not is_remote(path):
        return Path(path)
    aim()
    found: Any = epath.Path(path)
    return found


def absolute(path: StrPath) -> str:
    """The same path from the root on; an address in a bucket is one already."""
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)


def file_system(path: StrPath) -> Any:
    """The fsspec file system of an address."""
    import fsspec

    aim()
    return fsspec.filesystem(scheme_of(path))


def kvstore_spec(folder: StrPath) -> dict[str, Any]:
    """A folder as tensorstore names it."""
    aim()
    if not is_remote(folder):
        return {"driver": "file", "path": f"{os.path.abspath(folder)}/"}
    name = key_of(folder).strip("/")
    place = {"bucket": bucket_of(folder), "path": f"{name}/" if name else ""}
    if scheme_of(folder) == "gs":
        return {"driver": "gcs", **place}
    # Variables that s3fs reads and tensorstore does not.
    server = os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    spec: dict[str, Any] = {"driver": "s3", **place}
    if server:
        spec["endpoint"] = server
    if region:
        spec["aws_region"] = region
    if "AWS_ACCESS_KEY_ID" in os.environ:  # It would tell of every other place that it looks at in vain.
        spec["aws_credentials"] = {"type": "environment"}
    return spec


def make_dirs(path: StrPath) -> None:
    """Makes a folder with its parents; nothing in a bucket, where folders are parts of names.

    Raises:
      OSError: it cannot be made, or the bucket does not exist.
    """
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)
    elif not file_system(path).exists(bucket_of(path)):
        raise FileNotFoundError(
            f"bucket {scheme_of(path)}://{bucket_of(path)} does not exist; make it, or check its name"
        )


def size_of(path: StrPath) -> int | None:
    """The bytes of a file; None where there is none.

    Raises:
      OSError: it cannot be told.
    """
    if is_remote(path):
        try:
            found = file_system(path).info(os.fspath(path))
        except FileNotFoundError:
            return None
        return found["size"] if found["type"] == "file" else None
    return os.path.getsize(path) if os.path.isfile(path) else None


def modified_at(path: StrPath) -> float:
    """When a file was last written, in seconds since 1970.

    Raises:
      OSError: there is none, or it cannot be told.
    """
    if is_remote(path):
        return float(file_system(path).modified(os.fspath(path)).timestamp())
    return os.path.getmtime(path)


def files_under(folder: StrPath) -> dict[str, int]:
    """The files of a folder and of those within it: name from the folder on, and bytes; sorted, and none if no folder.

    Raises:
      OSError: it cannot be listed.
    """
    if is_remote(folder):
        root = os.fspath(folder).partition("://")[2].rstrip("/") + "/"
        found = file_system(folder).find(os.fspath(folder), detail=True)
        # Of an object of that name itself it tells too.
        return {name.removeprefix(root): found[name]["size"] for name in sorted(found) if name.startswith(root)}
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def read_files(paths: Sequence[str]) -> dict[str, bytes]:
    """The contents of several small files, those of a bucket many at once.

    Raises:
      OSError: one cannot be read.
    """
    if paths and is_remote(paths[0]):
        scheme = scheme_of(paths[0])
        return {f"{scheme}://{name}": content for name, content in file_system(paths[0]).cat(list(paths)).items()}
    return {path: Path(path).read_bytes() for path in paths}


def remove_files(folder: StrPath, names: Iterable[str]) -> None:
    """Removes files of a folder by their names in it; those that are not there are passed over.

    Raises:
      OSError: one cannot be removed.
    """
    if is_remote(folder):
        there = files_under(folder)
        gone = [f"{os.fspath(folder).rstrip('/')}/{name}" for name in names if name in there]
        if gone:
            file_system(folder).rm(gone)
        return
    for name in names:
        Path(folder, name).unlink(missing_ok=True)


def remove_tree(folder: StrPath) -> None:
    """Removes a folder with all in it; nothing where there is none.

    Raises:
      OSError: it cannot be removed.
    """
    if is_remote(folder):
        files = file_system(folder)
        names = files.find(os.fspath(folder))
        if names:
            files.rm(names)
    elif os.path.isdir(folder):
        shutil.rmtree(folder)


def bucket_of(path: StrPath) -> str:
    """The bucket of an address."""
    return os.fspath(path).partition("://")[2].partition("/")[0]


def key_of(path: StrPath) -> str:
    """The name of an object in its bucket."""
    return os.fspath(path).partition("://")[2].partition("/")[2]


def scheme_of(path: StrPath) -> str:
    """The kind of an address's bucket, one of SCHEMES."""
    return os.fspath(path).partition("://")[0]


def aim() -> None:
    """Completes what the libraries need to reach the server that the variables name, before their first use."""
    import fsspec

    # Other processes write too: what a listing showed once is no answer later.
    settings: dict[str, Any] = {"use_listings_cache": False}
    server = os.environ.get("STORAGE_EMULATOR_HOST")
    if server:
        settings["token"] = "anon"
        # gcsfs would ask Google about each bucket.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", server)
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "anonymous")
    for name in ("gs", "gcs"):
        fsspec.config.conf.setdefault(name, settings)
    fsspec.config.conf.setdefault("s3", {"use_listings_cache": False})
