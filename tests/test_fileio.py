"""Files and folders are complete or absent."""

from pathlib import Path

import pytest

from blip_diffusion.errors import InputError
from blip_diffusion.fileio import atomic_dir, atomic_file, check_writable, path_exists, sha256_of


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
