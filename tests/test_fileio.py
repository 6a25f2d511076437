"""Files and folders are complete or absent."""

import errno
import os
from pathlib import Path
from stat import S_ISDIR

import pytest

from blip_diffusion.errors import InputError
from blip_diffusion.fileio import (
    atomic_dir,
    atomic_file,
    check_writable,
    clear,
    locked,
    path_exists,
    remove_partials,
    sha256_of,
)


def test_file_is_replaced_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    for text in ("first", "second"):
        with atomic_file(path) as partial:
            partial.write_text(text)
            assert partial.suffix == ".txt"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_file_is_unchanged_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("first")
    with pytest.raises(KeyError), atomic_file(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_folder_is_replaced_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    for name in ("first", "second"):
        with atomic_dir(path) as partial:
            (partial / name).touch()
        assert [file.name for file in path.iterdir()] == [name]
    with pytest.raises(KeyError), atomic_dir(path) as partial:
        (partial / "third").touch()
        raise KeyError
    assert [file.name for file in path.iterdir()] == ["second"] and list(path.parent.iterdir()) == [path]


def test_failed_replacement_restores_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder"
    (path / "old").mkdir(parents=True)
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if (self / "new").is_dir():
            raise OSError("no space")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="no space"), atomic_dir(path) as partial:
        (partial / "new").mkdir()
    assert (path / "old").is_dir() and list(tmp_path.iterdir()) == [path]


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(b"abc") == sha256_of(tmp_path / "file")
    assert sha256_of(b"abc").startswith("ba7816bf")


def test_impossible_paths_are_refused(tmp_path: Path) -> None:
    assert path_exists(tmp_path) and not path_exists(tmp_path / ("x" * 5000)) and not path_exists(Path("\0"))


def test_unwritable_folder_is_refused(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "yet")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="another --grid"):
        check_writable(tmp_path / "file" / "below", flag="--grid")
    with pytest.raises(InputError, match=r"^--out '.*caf\\udce9' is not UTF-8: choose another name"):
        check_writable(tmp_path / os.fsdecode(b"caf\xe9"))


def test_a_folder_is_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder):
        with pytest.raises(InputError), locked(folder):
            pass
        assert folder.is_dir(), "the folder of the holder is removed"
        (folder / "file").touch()
        (folder / "inner").mkdir()
        with pytest.raises(InputError, match=r"Another process writes to .*run: wait for it"), locked(folder):
            pass
        clear(folder)
        assert list(folder.iterdir()) == []
        (folder / "file").touch()
    with locked(folder):
        assert folder.is_dir()
    (folder / "file").unlink()
    with locked(folder):
        pass
    assert not folder.exists()


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "loop", "loop/in", "file/in"])
def test_names_that_no_folder_can_have(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another --out"):
        check_writable(tmp_path / name)
    check_writable(tmp_path / "new" / "folder")


def test_names_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, then after its replacement the folder: a power failure can't leave an empty file under the name."""
    flushed: list[bool] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: flushed.append(S_ISDIR(os.fstat(descriptor).st_mode)))
    with atomic_file(tmp_path / "file.txt") as partial:
        partial.write_text("x")
    assert flushed == [False, True]


def test_a_full_disk_at_the_flush_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """And nothing else: files of users, and of other names."""
    left = tmp_path / f".partial-{'0a' * 16}-start"
    left.mkdir()
    (left / "half").touch()
    others = [tmp_path / name for name in (f".partial-{'0a' * 16}-rex.safetensors", ".partial-mine", "start")]
    for path in others:
        path.touch()
    remove_partials(tmp_path, "start")
    assert sorted(tmp_path.iterdir()) == sorted(others)
