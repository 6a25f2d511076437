"""Run a command on hostile files, within limits of time and memory."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unicodedata import category

import numpy as np
import pytest
from PIL import Image

from blip_diffusion.cli.main import main

SECONDS, MEMORY = 20, 2 * 2**30
Attempt = Callable[..., int]


@contextmanager
def limited(*, wall: int = 5 * SECONDS) -> Iterator[None]:
    """Context manager: fail after `SECONDS` of CPU time or `wall` seconds, and for `MEMORY` bytes more than now."""

    def late(*_: object) -> None:
        pytest.fail(f"more than {SECONDS} s of CPU time, or {wall} s")  # no command catches this

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[0][1]))
    profiled = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(wall)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, profiled)
        signal.signal(signal.SIGALRM, before[1])
        resource.setrlimit(resource.RLIMIT_AS, before[0])


def files() -> set[Path]:
    """Return the files in the working directory."""
    return {path for path in Path().rglob("*") if path.is_file()}


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Attempt:
    """Run a command, check how it ended, and return its exit code: 0, or 2 with one sentence and without a new file."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> int:
        before = files()
        with limited():
            code = main([str(word) for word in words])
        printed, error = capsys.readouterr()
        assert code in (0, 2), error
        assert not any(category(letter) == "Cc" and letter not in "\n\r" for letter in printed + error)
        new = files() - before
        assert Path("executed") not in new
        if code == 2:
            assert not new
            assert all(line.startswith("blip-diffusion: ") for line in error.splitlines())
            assert len(error) < 5000 and "Traceback" not in error
        for path in new:
            if path.suffix == ".png":
                assert np.asarray(Image.open(path)).std() > 1, "a blank image"
        return code

    return run
