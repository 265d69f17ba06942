"""One process trains in a run's folder at a time. The kernel gives the lock back when its holder dies, however it dies."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_codegen.errors import UserError

LOCK = "lock"
PATIENCE_SECONDS = 1.0
"""Whoever only looks (`holder`) has the lock for a moment, which must not keep a training from starting."""
# File systems of other machines may have no locks; training there goes without one.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises UserError naming the process that has it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    descriptor = _acquire(file)
    try:
        _write(descriptor, file)
        yield
    finally:
        file.unlink(missing_ok=True)  # before others can have it
        os.close(descriptor)


def _write(descriptor: int, file: Path) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    except OSError as error:
        error.filename = str(file)  # a write to an open file does not say which
        raise


def holder(folder: Path) -> str | None:
    """`process 123`, or `process 123 on otherhost`: who trains in this folder now; None where nobody does.

    Empty where somebody may, because the file system has no locks.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named(os.pread(descriptor, 300, 0))
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return None


def _acquire(file: Path) -> int:
    """An open descriptor of the locked file."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _named(os.pread(descriptor, 300, 0))
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise UserError(
                    f"{file.parent} is in use by {owner}; wait for it, stop it, or give this run another --name"
                ) from None
            time.sleep(0.05)
            continue
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
        if _is_still(file, descriptor):
            return descriptor
        os.close(descriptor)  # its holder removed it between our opening and locking it


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _named(content: bytes) -> str:
    process, _, host = content.decode("utf-8", "replace").strip().partition(" ")
    if not process.isdecimal():
        return "another process"
    return f"process {process}" + (f" on {host}" if host and host != socket.gethostname() else "")
