"""The image cache: no image is generated twice or partially written, and a folder belongs to one run."""

import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.errors import DataError, InputError
from blip_diffusion.evaluation.generators.cache import Shard, claim_output_dir, generate_missing
from blip_diffusion.evaluation.instances import Instance, build_instances


class Painter:
    """Paints, remembers what, and may fall off the ladder."""

    def __init__(self, falls_at: int | None = None) -> None:
        self.painted: list[Instance] = []
        self.falls_at = falls_at

    def __call__(self, instances: Sequence[Instance]) -> list[Image.Image]:
        if self.falls_at is not None and len(self.painted) + len(instances) > self.falls_at:
            raise KeyboardInterrupt
        self.painted += instances
        return [Image.new("RGB", (16, 16), (instance.seed % 256, 0, 0)) for instance in instances]


def test_interrupted_generation_resumes(bench: Bench, tmp_path: Path) -> None:
    instances = build_instances(bench.part(2, 4), 1)
    first, second = Painter(falls_at=4), Painter()
    with pytest.raises(KeyboardInterrupt):
        generate_missing(first, instances, tmp_path, batch_size=2)
    paths = generate_missing(second, instances, tmp_path, batch_size=2)
    assert first.painted + second.painted == instances
    assert all(path.is_file() for path in paths)
    third = Painter()
    assert generate_missing(third, instances, tmp_path, batch_size=2) == paths and not third.painted


def test_partial_files_are_not_used(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instances = build_instances(bench.part(2, 2), 1)

    def full(self: Image.Image, path: Path, *_: object) -> None:
        Path(path).write_bytes(b"\x89PNG")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", full)
        with pytest.raises(DataError, match=r"No space left on device.*free some space"):
            generate_missing(Painter(), instances, tmp_path, batch_size=2)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    generate_missing(Painter(), instances, tmp_path, batch_size=2)


@pytest.mark.parametrize("kind", ["named pipe", "file", "no folder"])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_generated(
    bench: Bench, tmp_path: Path, kind: str
) -> None:
    place, painter = tmp_path / "images", Painter()
    if kind == "named pipe":
        os.mkfifo(place)
    elif kind == "file":
        place.touch()
    else:
        place = Path("/proc/images")
    with pytest.raises(InputError, match=r"can't be made .*: choose another --out"):
        generate_missing(painter, build_instances(bench.part(2, 2), 1), place / "mini", batch_size=2)
    assert not painter.painted


@pytest.mark.parametrize(
    "spoil",
    [
        os.mkfifo,
        Path.mkdir,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.write_bytes(b"[1]"),
        lambda path: path.write_bytes(b"\xff"),
    ],
)
def test_other_settings_files_are_refused(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    spoil(tmp_path / "settings.json")
    with pytest.raises(DataError, match=r"settings.json .*choose another --out\.$"):
        claim_output_dir(tmp_path, {"seeds": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_shards_partition_the_instances(bench: Bench, count: int) -> None:
    instances = build_instances(bench, 1)
    parts = [Shard(index, count).select(instances) for index in range(1, count + 1)]
    assert sorted(instance.file for part in parts for instance in part) == sorted(
        instance.file for instance in instances
    )
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shards_are_written_as_fractions() -> None:
    assert Shard.parse("2/8") == Shard(2, 8)
    for text in ("0/8", "9/8", "2", "a/b", "2/0", "-1/2"):
        with pytest.raises(InputError, match="--shard"):
            Shard.parse(text)


def test_output_folder_belongs_to_one_run(tmp_path: Path) -> None:
    claim_output_dir(tmp_path, {"steps": 25, "seeds": 4})
    claim_output_dir(tmp_path, {"steps": 25, "seeds": 4})
    with pytest.raises(DataError, match="whose steps was 25 and not 10"):
        claim_output_dir(tmp_path, {"steps": 10, "seeds": 4})
    with pytest.raises(DataError, match="whose guidance was null and not 3"):
        claim_output_dir(tmp_path, {"steps": 25, "seeds": 4, "guidance": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(DataError, match="can't be read"):
        claim_output_dir(tmp_path, {"steps": 25, "seeds": 4})


def test_output_folder_is_claimed_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without hard links, and beside another machine's process of the same number."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    (tmp_path / f".settings.json.{os.getpid()}").mkdir()
    claim_output_dir(tmp_path, {"prompts": (1, 2)})
    claim_output_dir(tmp_path, {"prompts": (1, 2)})
    with pytest.raises(DataError, match=r"whose prompts was \[1, 2\] and not \[1\]"):
        claim_output_dir(tmp_path, {"prompts": (1,)})


def test_only_one_concurrent_claim_succeeds(tmp_path: Path) -> None:
    def claim(steps: int) -> bool:
        try:
            claim_output_dir(tmp_path, {"steps": steps})
        except DataError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(claim, range(8)))
    assert sum(won) == 1 and [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_file_as_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("taken")
    with pytest.raises(InputError, match="Nothing can be written"):
        claim_output_dir(tmp_path / "report", {"steps": 25})
