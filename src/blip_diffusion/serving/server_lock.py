"""Locks of servers: a folder with a SQLite queue has one server, and servers of a PostgreSQL queue see each other end.

Imports no torch.
"""

import os
import socket
import uuid
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from typing import Protocol

import psycopg
from filelock import FileLock, Timeout

from blip_diffusion.errors import InputError
from blip_diffusion.serving.settings import ServiceSettings

CONNECT_TIMEOUT = 10
"""Seconds to wait for the database at the start."""
KEEPALIVES = {"tcp_keepalives_idle": 10, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 3}
"""Settings with which PostgreSQL notices after 25 s that a machine is gone without closing its connection."""


class ServerLock(Protocol):
    """The lock that a server holds while it lives."""

    name: str
    """The server's name in the queue. Its running jobs carry it."""

    def acquire(self) -> None:
        """Take the lock. Raises `InputError`."""

    def release(self) -> None:
        """Give the lock back."""


def lock_of(settings: ServiceSettings) -> ServerLock:
    """Return the lock of a server with these settings."""
    return DatabaseLock(settings) if settings.is_shared else FolderLock(settings)


class FolderLock:
    """The lock of the only server of a folder. A restarted server has the same name, and so continues its jobs."""

    name = "server"

    def __init__(self, settings: ServiceSettings) -> None:
        self._folder = settings.folder
        self._lock = FileLock(settings.folder / "server.lock")

    def acquire(self) -> None:
        """Take the lock. Raises `InputError` if another server uses the folder."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(f"Another server uses {self._folder}: choose another folder.") from error

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()


class DatabaseLock:
    """The lock of one of several servers of a PostgreSQL database: an advisory lock on the server's name.

    The database drops it with the connection, also if the process is killed or its machine is lost.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        scheme, _, rest = settings.database_url.partition("://")
        self._url = f"{scheme.partition('+')[0]}://{rest}"
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._connection: psycopg.Connection | None = None
        self._free: set[str] = set()

    def acquire(self) -> None:
        """Connect and take the lock. Raises `InputError` if the database can't be reached."""
        try:
            self._connect()
        except psycopg.Error as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"The database of --database can't be reached: {reason}") from error

    def _connect(self) -> None:
        connection = psycopg.connect(self._url, autocommit=True, connect_timeout=CONNECT_TIMEOUT)
        for setting, value in KEEPALIVES.items():
            connection.execute(f"SET {setting} = {value}".encode())
        _try_lock(connection, self.name)
        self._connection = connection

    def renew(self) -> None:
        """Connect again if the database has dropped the connection. Raises `psycopg.Error` if that fails."""
        assert self._connection is not None
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            self.release()
            self._connect()

    def release(self) -> None:
        """Close the connection, and so give the lock back."""
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()

    def ended(self, names: Iterable[str]) -> set[str]:
        """Return which of other servers have ended: those whose lock was free at this call and at the one before.

        A server whose connection was dropped, for instance by a restart of the database, takes its lock again between.
        """
        assert self._connection is not None
        free = set()
        for name in names:
            if _try_lock(self._connection, name):
                self._connection.execute("SELECT pg_advisory_unlock(%s)", [_key(name)])
                free.add(name)
        ended, self._free = free & self._free, free
        return ended


def _try_lock(connection: psycopg.Connection, name: str) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", [_key(name)]).fetchone()
    return row is not None and bool(row[0])


def _key(name: str) -> int:
    return int.from_bytes(sha256(f"blip-diffusion {name}".encode()).digest()[:8], signed=True)
