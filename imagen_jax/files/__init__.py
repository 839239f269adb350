"""Files on this machine and in buckets: where they lie, whole or absent, copied here, and who may write."""

from imagen_jax.files.copies import copy_place, local_copy, local_folder, make_room
from imagen_jax.files.growing import GrowingFile
from imagen_jax.files.locks import LEASE_S, Lock, LockLostError, Presence, locked
from imagen_jax.files.places import (
    SCHEMES,
    as_path,
    file_system,
    files_under,
    is_remote,
    make_dirs,
    remove_tree,
    size_of,
)
from imagen_jax.files.whole import (
    StrPath,
    is_file_name,
    move_file,
    read_json,
    sha256_of_file,
    sha256_of_files,
    shipped_file,
    shipped_root,
    sync_directory,
    whole_file,
    write_bytes,
    write_json,
    write_text,
)

__all__ = [
    "GrowingFile",
    "LEASE_S",
    "Lock",
    "LockLostError",
    "Presence",
    "SCHEMES",
    "StrPath",
    "as_path",
    "copy_place",
    "file_system",
    "files_under",
    "is_file_name",
    "is_remote",
    "local_copy",
    "local_folder",
    "locked",
    "make_dirs",
    "make_room",
    "move_file",
    "read_json",
    "remove_tree",
    "sha256_of_file",
    "sha256_of_files",
    "shipped_file",
    "shipped_root",
    "size_of",
    "sync_directory",
    "whole_file",
    "write_bytes",
    "write_json",
    "write_text",
]
