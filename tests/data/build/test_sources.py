"""Source packages: checksums, refused archives, and missing clients."""

import io
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from blip_diffusion.data.build.sources import SOURCES, Source, chosen, fetch, undeb, untar, unzip
from blip_diffusion.errors import DataError
from blip_diffusion.fileio import sha256_of


def tar(path: Path, **members: str) -> Path:
    with tarfile.open(path, "w:gz") as files:
        for name, text in members.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(text)
            files.addfile(info, io.BytesIO(text.encode()))
    return path


def client(folder: Path, archive: Path) -> None:
    """A fake `npm` that always returns the same archive."""
    folder.mkdir()
    script = folder / "npm"
    script.write_text(f'#!/bin/sh\n/bin/cp "{archive}" pack.tgz\n')
    script.chmod(0o755)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A source with client and archive in the folder of the test."""
    archive = tar(tmp_path / "pack.tgz", package__hello="hi")
    client(tmp_path / "bin", archive)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Source("toys", "npm", "toys@1", "1", "MIT", sha256_of(archive), "toys", "someone")


def test_package_is_downloaded_once(package: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    folder = fetch([package], tmp_path / "cache", progress=messages.append)["toys"]
    assert (folder / "package/hello").read_text() == "hi"
    monkeypatch.setenv("PATH", "")
    assert fetch([package], tmp_path / "cache", progress=messages.append)["toys"] == folder
    assert messages == ["fetching toys@1 1"]


def test_existing_archive_is_not_downloaded_again(package: Source, tmp_path: Path) -> None:
    fetch([package], tmp_path / "cache", progress=lambda _: None)
    (tmp_path / "cache/unpacked/toys/.sha256").unlink()
    os.remove(tmp_path / "bin/npm")
    assert fetch([package], tmp_path / "cache", progress=lambda _: None)["toys"].is_dir()


def test_wrong_checksum_is_refused(package: Source, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="The package of toys is not the pinned one"):
        fetch([replace(package, sha256="0" * 64)], tmp_path / "cache", progress=lambda _: None)
    assert not list((tmp_path / "cache/archives").iterdir())
    assert not (tmp_path / "cache/unpacked/toys").exists()


@pytest.mark.parametrize(("name", "tool"), [("apt", "apt-get"), ("npm", "npm")])
def test_missing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tool: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=f"toys needs {tool}, which isn't installed"):
        fetch([Source("toys", name, "toys", "1", "MIT", "0", "", "")], tmp_path, progress=lambda _: None)


def test_error_of_a_client_is_quoted(package: Source, tmp_path: Path) -> None:
    (tmp_path / "bin/npm").write_text("#!/bin/sh\necho no such package >&2\nexit 1\n")
    with pytest.raises(DataError, match="npm could not fetch toys@1: no such package"):
        fetch([package], tmp_path / "cache", progress=lambda _: None)


def test_tar_members_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="can't be unpacked safely"):
        untar(tar(tmp_path / "evil.tgz", **{"..__evil": "x"}), tmp_path / "in")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil-blip", "a/../../evil", "..\\evil"])
def test_zip_members_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as files:
        files.writestr(name, "x")
    with pytest.raises(DataError, match="leaves its folder"):
        unzip(tmp_path / "evil.zip", tmp_path / "in")
    assert not (tmp_path / "evil").exists()


def test_unzip_extracts_one_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as files:
        files.writestr("one/x", "1")
        files.writestr("two/x", "2")
    unzip(tmp_path / "a.zip", tmp_path / "out", prefix="one/")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["one"]


def member(name: str, body: bytes) -> bytes:
    """One file of an `ar` archive."""
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{0:<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)


def test_debian_package_is_unpacked(tmp_path: Path) -> None:
    data = tar(tmp_path / "data.tar.gz", usr__hello="hi").read_bytes()
    deb = tmp_path / "a.deb"
    deb.write_bytes(b"!<arch>\n" + member("debian-binary", b"2.0") + member("data.tar.gz", data))
    (tmp_path / "out").mkdir()
    undeb(deb, tmp_path / "out")
    assert (tmp_path / "out/usr/hello").read_text() == "hi"
    deb.write_bytes(b"!<arch>\n" + member("debian-binary", b"2.0"))
    with pytest.raises(DataError, match="without files"):
        undeb(deb, tmp_path / "out")
    deb.write_bytes(b"PK")
    with pytest.raises(DataError, match="not a Debian package"):
        undeb(deb, tmp_path / "out")


def test_table_of_sources_is_valid() -> None:
    assert len({source.name for source in SOURCES}) == len({source.sha256 for source in SOURCES}) == len(SOURCES)
    assert all(len(source.sha256) == 64 and source.client in ("apt", "npm") for source in SOURCES)
    assert [source.name for source in chosen(["noto"])] == ["noto"]
    assert chosen(None) == SOURCES
    with pytest.raises(DataError, match="no source named nope: choose from sweethome3d"):
        chosen(["nope"])


@pytest.mark.network
def test_real_package_is_downloaded(tmp_path: Path) -> None:
    folder = fetch(chosen(["emojione"]), tmp_path)["emojione"]
    assert (folder / "package/icons.json").is_file()
