"""Atomic writes of files and folders, their digests, and checks that they can be written."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from blip_diffusion.errors import InputError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; it replaces `path` if the block succeeds, else it is removed.

    The temporary name keeps the suffix, and no other process or machine uses it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a new folder next to `path`; it replaces `path` if the block succeeds, else it is removed."""
    partial = _partial(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        replace_path(partial, path, aside=_partial(path))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_path(new: Path, path: Path, *, aside: Path) -> None:
    """Rename `new` to `path`. An existing `path` is moved to `aside`, and restored on an error, or else removed."""
    try:
        if path.exists():
            path.replace(aside)
        new.replace(path)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.replace(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, without changing line ends."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def sha256_of(source: Path | bytes) -> str:
    """Return the hexadecimal SHA-256 digest of a file or of bytes."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_exists(path: Path, check: Callable[[Path], bool] = Path.exists) -> bool:
    """Return whether `check` holds for a path; a name that no file can have, such as 5,000 letters, does not exist."""
    try:
        return check(path)
    except (OSError, ValueError):
        return False


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE_WORDS = ("No space left on device", "File too large", "os error 28", "os error 27", "PytorchStreamWriter")
"""Messages of libraries that don't raise errors with Python's error numbers."""


def is_full(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, is a full disk or quota."""
    while error is not None:
        if getattr(error, "errno", None) in NO_SPACE or any(words in str(error) for words in NO_SPACE_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_writable(folder: Path, *, flag: str = "--out") -> None:
    """Raise `InputError` if nothing can be written to `folder`, which may not exist yet."""
    try:
        existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        tempfile.TemporaryFile(dir=existing).close()  # permission bits are not enough: /proc, read-only mounts
    except OSError as error:
        raise InputError(f"Nothing can be written to {folder}: choose another {flag}.") from error


def _partial(path: Path) -> Path:
    return path.with_name(f".partial-{uuid4().hex}-{path.name}")
