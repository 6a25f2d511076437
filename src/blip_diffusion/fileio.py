"""Atomic writes of files and folders, their digests, and checks that they can be written."""

import errno
import glob
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any
from uuid import uuid4

from blip_diffusion.control_characters import first_control
from blip_diffusion.errors import InputError

EARLIER = "earlier"
"""Name of a replaced result in a `scratch_dir`."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; it replaces `path` if the block succeeds, else it is removed.

    The temporary name keeps the suffix, and no other process or machine uses it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
        flush(partial)
        os.replace(partial, path)
        flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a new folder next to `path`; it replaces `path` if the block succeeds, else it is removed."""
    partial = _partial(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        for inside in partial.rglob("*"):
            flush(inside)
        replace_path(partial, path, aside=_partial(path))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def scratch_dir(path: Path) -> Iterator[Path]:
    """Yield a new folder next to `path`, for a result that replaces `path` and for the earlier one; then remove it.

    Folders that killed processes left are removed first. If one holds the earlier `path`, as `EARLIER`, and there is no
    new one, that gets its name back.
    """
    for left in _partials(path.parent, glob.escape(path.name)):
        with suppress(InputError), locked(left):  # else another process works in it
            if (left / EARLIER).exists() and not path.exists():
                (left / EARLIER).replace(path)
            clear(left)
    partial = _partial(path)
    with locked(partial):
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def replace_path(new: Path, path: Path, *, aside: Path) -> None:
    """Rename `new` to `path`. An existing `path` is moved to `aside`, and restored on an error, or else removed."""
    try:
        if path.exists():
            path.replace(aside)
        new.replace(path)
        flush(path.parent)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.replace(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context manager: no other process writes a run to this folder, which is created.

    The lock is the system's, on the folder itself, and ends with the process; where there are none, nothing is locked.

    Raises:
        InputError: If another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # on Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"Another process writes to {folder}: wait for it, or choose another --out.") from error
        except OSError as error:  # a file system without locks
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL):
                raise
        try:
            yield
        finally:  # only by the holder: a folder that another process has locked stays
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    finally:
        os.close(descriptor)


@contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Context manager: lock the folder of a training run, and remove partial files of killed processes.

    Raises:
        InputError: If another process has locked it.
    """
    with locked(folder):
        remove_partials(folder)
        yield


def remove_partials(folder: Path, name: str = "*") -> None:
    """Remove partial files and folders `name` of killed processes; no process may be writing them."""
    for path in _partials(folder, name):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _partials(folder: Path, name: str) -> Iterable[Path]:
    """Return the partial files and folders `name`, a pattern of `glob`."""
    return folder.glob(f".partial-{'[0-9a-f]' * 32}-{name}") if folder.is_dir() else ()


def clear(folder: Path) -> None:
    """Remove all that is in a folder, which itself stays, as a lock on it does."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, without changing line ends."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def save_image(image: Any, path: Path, **options: Any) -> None:
    """Write a PIL image atomically, in the format of the path's suffix; `options` are those of its method `save`."""
    with atomic_file(path) as partial:
        image.save(partial, **options)


def sha256_of(source: Path | bytes) -> str:
    """Return the hexadecimal SHA-256 digest of a file or of bytes."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_path(name: str, value: Any) -> Path:
    """Return an argument as a path.

    Raises:
        InputError: For anything but text and paths, and for empty text, which would name the current folder.
    """
    if not isinstance(value, str | PurePath):
        raise InputError(f"{name} is a {type(value).__name__}: use a path, as text or a Path.")
    if isinstance(value, str) and not value.strip():
        raise InputError(f"{name} is empty: use a path, or . for the current folder.")
    return Path(value)


def path_exists(path: Path, check: Callable[[Path], bool] = Path.exists) -> bool:
    """Return whether `check` holds for a path; a name that no file can have, such as 5,000 letters, does not exist."""
    try:
        return check(path)
    except (OSError, ValueError):
        return False


MAX_HEADER = 2**20
"""Bytes of an extended header of an archive."""
EXTENDED_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
                    tarfile.GNUTYPE_LONGLINK)  # fmt: skip
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE_WORDS = (
    "No space left on device", "File too large", "os error 28", "os error 27", "PytorchStreamWriter",
    "enforce fail at inline_container", "No usable temporary directory",
)  # fmt: skip
"""Messages of libraries that don't raise errors with Python's error numbers; torch looks for a temporary directory."""


def is_full(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, is a full disk or quota."""
    while error is not None:
        if getattr(error, "errno", None) in NO_SPACE or any(words in str(error) for words in NO_SPACE_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_bad_name(error: BaseException) -> bool:
    """Return whether an error is a name that no file can have: too long, with a NUL, or a loop of links."""
    if isinstance(error, ValueError):
        return "null" in str(error) and "embedded" in str(error)
    return getattr(error, "errno", None) in (errno.ENAMETOOLONG, errno.ELOOP)


def check_writable(folder: Path, *, flag: str = "--out") -> None:
    """Raise `InputError` if nothing can be written to `folder`, which may not exist yet."""
    check_unicode(folder, flag=flag)
    try:
        with suppress(FileNotFoundError):
            folder.stat()  # which fails for names that no folder can have
        existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        tempfile.TemporaryFile(dir=existing).close()  # permission bits are not enough: /proc, read-only mounts
    except (OSError, ValueError) as error:
        raise InputError(f"Nothing can be written to {folder}: choose another {flag}.") from error


def check_result(path: Path) -> None:
    """Raise `InputError` if nothing can be written to `path`, a file or folder that need not exist yet."""
    check_unicode(path)
    check_writable(path.parent)


def check_unicode(path: Path, *, flag: str = "--out") -> None:
    """Raise `InputError` for a name with bytes that aren't UTF-8, which tokenizers can't read, or with an escape."""
    if first_control(str(path)):
        raise InputError(f"{flag} {str(path)!a} has control characters: choose another {flag}.")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{flag} {str(path)!a} is not UTF-8: choose another name.") from error


def flush(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk, so that a power failure can't undo a replacement."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # folders on Windows
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
    finally:
        os.close(descriptor)


class BoundedTarInfo(tarfile.TarInfo):
    """A member of an archive whose extended headers, which tarfile reads whole, are small."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in EXTENDED_HEADERS and self.size > MAX_HEADER:
            raise ValueError(f"it has a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


def _partial(path: Path) -> Path:
    return path.with_name(f".partial-{uuid4().hex}-{path.name}")
