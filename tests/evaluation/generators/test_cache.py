"""No picture is made twice, none is half written, and one folder holds one run."""

import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.errors import DataError, InputError
from blip_diffusion.evaluation.generators.cache import Shard, draw_missing, keep_settings
from blip_diffusion.evaluation.instances import Case, cases_of


class Painter:
    """Paints, remembers what, and may fall off the ladder."""

    def __init__(self, falls_at: int | None = None) -> None:
        self.painted: list[Case] = []
        self.falls_at = falls_at

    def __call__(self, cases: Sequence[Case]) -> list[Image.Image]:
        if self.falls_at is not None and len(self.painted) + len(cases) > self.falls_at:
            raise KeyboardInterrupt
        self.painted += cases
        return [Image.new("RGB", (16, 16), (case.seed % 256, 0, 0)) for case in cases]


def test_a_crash_resumes_where_it_stood(bench: Bench, tmp_path: Path) -> None:
    cases = cases_of(bench.part(2, 4), 1)
    first, second = Painter(falls_at=4), Painter()
    with pytest.raises(KeyboardInterrupt):
        draw_missing(first, cases, tmp_path, batch=2)
    paths = draw_missing(second, cases, tmp_path, batch=2)
    assert first.painted + second.painted == cases
    assert all(path.is_file() for path in paths)
    third = Painter()
    assert draw_missing(third, cases, tmp_path, batch=2) == paths and not third.painted


def test_nothing_half_written_is_taken_for_a_picture(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = cases_of(bench.part(2, 2), 1)

    def full(self: Image.Image, path: Path, *_: object) -> None:
        Path(path).write_bytes(b"\x89PNG")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", full)
        with pytest.raises(DataError, match="No space left"):
            draw_missing(Painter(), cases, tmp_path, batch=2)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    draw_missing(Painter(), cases, tmp_path, batch=2)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_shards_are_everything_once(bench: Bench, count: int) -> None:
    cases = cases_of(bench, 1)
    parts = [Shard(index, count).of(cases) for index in range(1, count + 1)]
    assert sorted(case.file for part in parts for case in part) == sorted(case.file for case in cases)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shards_are_written_as_fractions() -> None:
    assert Shard.parse("2/8") == Shard(2, 8)
    for text in ("0/8", "9/8", "2", "a/b", "2/0", "-1/2"):
        with pytest.raises(InputError, match="--shard"):
            Shard.parse(text)


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    keep_settings(tmp_path, {"steps": 25, "seeds": 4})
    keep_settings(tmp_path, {"steps": 25, "seeds": 4})
    with pytest.raises(DataError, match="whose steps was 25 and not 10"):
        keep_settings(tmp_path, {"steps": 10, "seeds": 4})
    with pytest.raises(DataError, match="whose guidance was null and not 3"):
        keep_settings(tmp_path, {"steps": 25, "seeds": 4, "guidance": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(DataError, match="can't be read"):
        keep_settings(tmp_path, {"steps": 25, "seeds": 4})


def test_a_folder_is_claimed_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without hard links, and beside another machine's process of the same number."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    (tmp_path / f".settings.json.{os.getpid()}").mkdir()
    keep_settings(tmp_path, {"prompts": (1, 2)})
    keep_settings(tmp_path, {"prompts": (1, 2)})
    with pytest.raises(DataError, match=r"whose prompts was \[1, 2\] and not \[1\]"):
        keep_settings(tmp_path, {"prompts": (1,)})


def test_one_of_many_that_claim_a_folder_at_once_has_it(tmp_path: Path) -> None:
    def claim(steps: int) -> bool:
        try:
            keep_settings(tmp_path, {"steps": steps})
        except DataError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(claim, range(8)))
    assert sum(won) == 1 and [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("taken")
    with pytest.raises(InputError, match="Nothing can be written"):
        keep_settings(tmp_path / "report", {"steps": 25})
