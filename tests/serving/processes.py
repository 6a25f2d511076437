"""Servers in processes of their own, for tests with the marker faces."""

import os
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

READY = 300.0
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(
    command: Sequence[str],
    port: int,
    errors: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    wait_for: str = "/",
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a server, and yield its address and its process once a path answers 200; `errors` gets what it prints.

    Its workers have one thread each, which is faster for tiny tensors.
    """
    address = f"http://127.0.0.1:{port}"
    with (
        errors.open("ab") as log,
        subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | ONE_THREAD | dict(environment or {}), cwd=folder
        ) as process,
    ):
        try:
            wait_until_answered(f"{address}{wait_for}", process, errors)
            yield address, process
        finally:
            process.terminate()


def wait_until_answered(url: str, process: subprocess.Popen[bytes], errors: Path) -> None:
    deadline = monotonic() + READY
    while monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            sleep(0.2)
    raise AssertionError(f"The server did not get ready: {errors.read_text()}")
