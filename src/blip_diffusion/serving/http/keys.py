"""API keys: a file of names and SHA-256 digests. Keys are random and long, so a fast digest is enough."""

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from blip_diffusion.errors import InputError
from blip_diffusion.fileio import write_text

PREFIX = "bd-"
MAX_BYTES = 2**20
LINE = re.compile(r"([A-Za-z0-9_.-]{1,64}) ([0-9a-f]{64})")


class ApiKeys:
    """The keys that a server accepts.

    Args:
        digests: SHA-256 of each key, by the name of its owner.
    """

    def __init__(self, digests: dict[str, str]) -> None:
        self._digests = digests

    def owner_of(self, key: str) -> str | None:
        """Return the owner of a key; `None` for an unknown key. The time that it takes doesn't depend on the keys."""
        digest = _digest(key)
        matches = [name for name, known in self._digests.items() if hmac.compare_digest(digest, known)]
        return matches[0] if matches else None


def read_keys(path: Path) -> ApiKeys:
    """Read a file of keys. Raises `InputError` if it is missing, empty or malformed."""
    digests = _digests(path)
    if not digests:
        raise InputError(f"{path} is not a file of API keys: make it with --new-key NAME.")
    return ApiKeys(digests)


def _digests(path: Path) -> dict[str, str]:
    """Return the digests in a file by name. Raises `InputError` for a file of anything else."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:  # a named pipe, for example
            raise OSError("it is not a small file")
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"The file of API keys {path} can't be read: make it with --new-key NAME.") from error
    matches = [match for line in lines if (match := LINE.fullmatch(line))]
    if len(matches) < len(lines):
        raise InputError(f"{path} is not a file of API keys: make it with --new-key NAME.")
    digests = {match[1]: match[2] for match in matches}
    if len(digests) < len(matches):
        raise InputError(f"{path} has two keys of one name: keep one line of each.")
    return digests


def new_key(path: Path, name: str) -> str:
    """Add a key to a file, which is created if missing, and return it. Only its digest is kept.

    Raises:
        InputError: If the name has other characters than letters, digits, `.`, `_` and `-`, or is taken.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {_digest(key)}"
    if not LINE.fullmatch(line):
        raise InputError(f"--new-key {name} can't name a key: use up to 64 letters, digits, dots, `_` and `-`.")
    digests = _digests(path) if path.exists() else {}
    if name in digests:
        raise InputError(f"{path} has a key {name} already: choose another name, or remove its line.")
    write_text(path, "\n".join([*(f"{other} {digest}" for other, digest in digests.items()), line, ""]))
    path.chmod(0o600)
    return key


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
