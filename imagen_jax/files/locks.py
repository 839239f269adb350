"""Locks that one process at a time holds: a file's lock on this machine, a lease in a bucket.

The system gives a file's lock back when its process ends, however it ends. A lease is an object that names its owner,
made and changed only under the condition that nobody else has (see `conditions`). Its owner renews it; who
sees one that is not renewed for `LEASE_S`, or whose process on the same machine has ended, takes it over. No two
clocks are compared.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.files import conditions
from imagen_jax.files.places import StrPath, as_path, file_system, is_remote, make_dirs

LEASE_S = 60.0
_RENEWALS = 4
_LAST_RENEWAL_S = 20.0
_POLL_S = 0.5
# Lease -> its version and since when this process has seen it unchanged.
_seen: dict[str, tuple[str, float]] = {}


class LockLostError(UserError):
    """A lease that another process took over: this one was silent for too long."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Attributes:
      process: its number on its machine.
      host: name of the machine.
      runs: tells if there still is such a process; None of another machine, where nobody can tell from here.
    """

    process: int
    host: str
    runs: bool | None


class Lock:
    """A lock at a path; `acquire` before, `release` after.

    Args:
      path: of a file that is made for it, in a folder that exists, or of an object.

    Attributes:
      path: the same.
    """

    def __init__(self, path: StrPath):
        self.path = os.fspath(path)
        self._lock: _FileLock | _Lease = _Lease(os.fspath(path)) if is_remote(path) else _FileLock(path)

    def acquire(self, wait_s: float = 0.0, patient: bool = True) -> bool:
        """Takes the lock where it is free, or becomes so within `wait_s` seconds.

        Args:
          wait_s: how long to wait.
          patient: False gives up as soon as a lease is seen to be renewed: its owner is at work.

        Raises:
          OSError: the file or object cannot be made.
        """
        end = time.monotonic() + wait_s
        while not self._lock.try_acquire():
            if time.monotonic() >= end or (self._lock.renewed and not patient):
                return False
            time.sleep(min(_POLL_S, max(0.0, end - time.monotonic())))
        return True

    def owner(self) -> str:
        """Who holds it, in words."""
        found = self.holder()
        return f"process {found.process} on host {found.host}" if found is not None else "another process"

    def holder(self) -> "Holder | None":
        """Who holds it, or held it until a kill; None where nobody does. Looking changes nothing."""
        try:
            found = json.loads(self._lock.content())
            here = found["machine"] == _machine()
            return Holder(found["process"], found["host"], _runs(found["process"]) if here else None)
        except (ValueError, KeyError, TypeError, OSError):
            return None

    def check(self) -> None:
        """Makes sure that it is still held.

        Raises:
          LockLostError: another process took it over.
        """
        self._lock.check()

    def release(self) -> None:
        """Gives it back; nothing if it is not held."""
        self._lock.release()


@contextlib.contextmanager
def locked(path: StrPath, wait_s: float = 0.0) -> Iterator[bool]:
    """A block that tells if it holds the lock at `path`; see `Lock.acquire`."""
    lock = Lock(path)
    held = lock.acquire(wait_s)
    try:
        yield held
    finally:
        if held:
            lock.release()


@contextlib.contextmanager
def alone_in(folder: StrPath, name: str, what: str, doing: str) -> Iterator[Callable[[], None]]:
    """A block in which no other process does the same work in a folder; it is made, and goes if it stays empty.

    Args:
      folder: where the work's files go.
      name: of the lock in it, which tells this kind of work from others.
      what: the folder, as messages call it: "--output=x".
      doing: the work: "is being `doing` by process 7 on host a".

    Yields:
      What makes sure that it still is so: in a bucket, a process that is cut off for a minute may be taken for dead. It
      raises LockLostError otherwise.

    Raises:
      UserError: another process does the same there (named by host and process), or the folder cannot be written.
    """
    lock, made = Lock(as_path(folder) / name), not is_remote(folder) and not os.path.exists(folder)
    try:
        make_dirs(folder)
        # In a bucket the lease of a process that was killed on another machine has to be seen unchanged for a while.
        held = lock.acquire(LEASE_S + 5 if is_remote(folder) else 0.0, patient=False)
    except OSError as error:
        raise UserError(f"{what} cannot be written ({error}); choose another") from error
    if not held:
        raise UserError(f"{what} is being {doing} by {lock.owner()}; wait until that has ended, or choose another")
    try:
        yield lock.check
    finally:
        lock.release()
        if made:
            with contextlib.suppress(OSError):  # It holds something.
                os.rmdir(folder)


class Presence:
    """Processes that are at work at a place at the same time; who needs to be alone there can tell.

    Args:
      path: as of a Lock; in a bucket each process has an object of this name and a number.
    """

    def __init__(self, path: StrPath):
        self._path = os.fspath(path)
        self._lease = Lock(f"{self._path}-{secrets.token_hex(8)}") if is_remote(path) else None
        self._file: Any = None

    def enter(self) -> None:
        """Counts this process in.

        Raises:
          OSError: the file or object cannot be made.
        """
        if self._lease is not None:
            self._lease.acquire()
        else:
            self._file = open(self._path, "a+b")  # noqa: SIM115
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def alone(self, wait_s: float = 0.0) -> bool:
        """Tells if no other process is there, or none any more within `wait_s` seconds."""
        end = time.monotonic() + wait_s
        while self._others():
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL_S)
        return True

    def leave(self) -> None:
        """Counts this process out."""
        if self._lease is not None:
            self._lease.release()
        elif self._file is not None:
            self._file.close()
            self._file = None

    def _others(self) -> bool:
        if self._lease is not None:
            mine = self._lease.path.partition("://")[2]
            there = file_system(self._path).glob(f"{self._path}-*")
            scheme = self._path.partition("://")[0]
            return not all(name == mine or _Lease(f"{scheme}://{name}").remove_given_up() for name in there)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            fcntl.flock(self._file, fcntl.LOCK_SH)
        return False


def _note() -> dict[str, Any]:
    return {"host": socket.gethostname(), "machine": _machine(), "process": os.getpid()}


def _machine() -> str:
    """Names the machine since its start, and the container in which process numbers mean something."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return secrets.token_hex(16)  # No other process is on this machine, as far as can be told.


class _FileLock:
    renewed = False

    def __init__(self, path: StrPath):
        self._path = path
        self._file: Any = None

    def try_acquire(self) -> bool:
        while True:
            file = open(self._path, "a+b")  # noqa: SIM115
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return False
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._path)):
                    break
            file.close()  # Its last owner removed it after it was opened here.
        file.truncate(0)
        file.write(json.dumps(_note()).encode())
        file.flush()
        self._file = file
        return True

    def content(self) -> bytes:
        with open(self._path, "rb") as file:
            return file.read()

    def check(self) -> None:
        """Nothing: the system takes no lock away."""

    def release(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.remove(self._path)
            self._file.close()
            self._file = None


class _Lease:
    def __init__(self, url: str):
        self._url = url
        self._nonce = secrets.token_hex(8)
        self._version: str | None = None
        self._stop = threading.Event()
        self._renewing: threading.Thread | None = None
        self._lost = False
        self.renewed = False

    def try_acquire(self) -> bool:
        content = self._content(0)
        with contextlib.suppress(FileExistsError):
            conditions.create(self._url, content)
        found = conditions.read(self._url)
        if found is not None and self._given_up(*found):
            with contextlib.suppress(FileExistsError):
                conditions.replace(self._url, content, found[0])
            found = conditions.read(self._url)
        # Asked for in every case: a request whose answer was lost is sent again, and finds its own object.
        if found is None or json.loads(found[1]).get("nonce") != self._nonce:
            return False
        self._version, self._lost = found[0], False
        self._stop.clear()
        self._renewing = threading.Thread(target=self._renew, daemon=True)
        self._renewing.start()
        return True

    def content(self) -> bytes:
        return (conditions.read(self._url) or ("", b""))[1]

    def check(self) -> None:
        if self._lost:
            raise LockLostError(
                f"the lease {self._url} was taken over by {Lock(self._url).owner()}: this process could not renew it "
                f"for {LEASE_S:.0f} s; end one of the two"
            )

    def release(self) -> None:
        self._stop.set()
        if self._renewing is not None:
            # A renewal under way makes another version: the removal of the one before would be refused.
            self._renewing.join(_LAST_RENEWAL_S)
            self._renewing = None
        if self._version is not None and not self._lost:
            with contextlib.suppress(FileExistsError):
                conditions.remove(self._url, self._version)
        self._version = None

    def remove_given_up(self) -> bool:
        """Removes the lease of a process that has ended; False where its process is at work."""
        found = conditions.read(self._url)
        if found is not None and not self._given_up(*found):
            return False
        if found is not None:
            self._version = found[0]
            self.release()
        return True

    def _content(self, renewals: int) -> bytes:
        # Counted: the version that S3 knows is the content's.
        return json.dumps({**_note(), "nonce": self._nonce, "renewals": renewals}).encode()

    def _given_up(self, version: str, content: bytes) -> bool:
        owner = json.loads(content)
        if owner.get("nonce") == self._nonce:
            return False
        if owner.get("machine") == _machine() and not _runs(owner.get("process")):
            return True
        before = _seen.get(self._url)
        if before is None or before[0] != version:
            self.renewed = before is not None
            _seen[self._url] = (version, time.monotonic())
            return False
        return time.monotonic() - before[1] > LEASE_S

    def _renew(self) -> None:
        renewals = 0
        while not self._stop.wait(LEASE_S / _RENEWALS):
            version = self._version
            if version is None:
                return
            renewals += 1
            try:
                self._version = conditions.replace(self._url, self._content(renewals), version)
            except FileExistsError:
                found = conditions.read(self._url)
                if found is None or json.loads(found[1]).get("nonce") != self._nonce:
                    self._lost = True
                    return
                self._version = found[0]
            except Exception:  # noqa: BLE001
                # Tried again at the next turn; whoever finds the lease unchanged for too long takes it over.
                continue


def _runs(process: object) -> bool:
    try:
        os.kill(int(str(process)), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):
        return True
    return True
