"""Files of the job service: references, photos, generated images and subjects, each under an id. Imports no torch."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blip_diffusion.checkpoint.subject_header import SubjectHeader, read_subject_header
from blip_diffusion.errors import CheckpointError
from blip_diffusion.fileio import atomic_file, sha256_of
from blip_diffusion.serving.errors import UnknownId

JOB_ID = re.compile(r"[0-9a-f]{32}")
IMAGE_ID = re.compile(r"[0-9a-f]{32}-[0-9]{1,4}")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredSubject:
    """A subject file in the store: its id, which is its SHA-256, and its header."""

    id: str
    header: SubjectHeader


class Store:
    """Four folders of files. Ids are checked by pattern, so that an id can't name a file elsewhere.

    Args:
        folder: Parent of `references`, `photos`, `images` and `subjects`; created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._references, self._photos, self._images, self._subjects = (
            folder / name for name in ("references", "photos", "images", "subjects")
        )
        for path in (self._references, self._photos, self._images, self._subjects):
            path.mkdir(parents=True, exist_ok=True)

    # ---------------------------------------------------------------------------------------------- references

    def add_reference(self, png: bytes) -> str:
        """Save a PNG file and return its id. Equal files are saved once."""
        digest = sha256_of(png)
        _write_once(self._references / f"{digest}.png", png)
        return digest

    def read_reference(self, digest: str) -> bytes:
        """Return a PNG file. Raises `UnknownId`."""
        return _read(self._references, digest, DIGEST, ".png")

    def remove_references_except(self, used: set[str], *, older_than: float) -> None:
        """Remove every reference and photo that no job needs, unless it is newer than a Unix time."""
        for path in (*self._references.glob("*.png"), *self._photos.glob("*.image")):
            if path.stem not in used and _modified(path) < older_than:
                path.unlink(missing_ok=True)

    # -------------------------------------------------------------------------------------------------- photos

    def add_photo(self, data: bytes) -> str:
        """Save the photo or the mask of an edit unchanged, so that its digest stays the same, and return its id."""
        digest = sha256_of(data)
        _write_once(self._photos / f"{digest}.image", data)
        return digest

    def photo_path(self, digest: str) -> Path:
        """Return the path of a photo or a mask. Raises `UnknownId`."""
        return _path(self._photos, digest, DIGEST, ".image")

    def has_photo(self, digest: str) -> bool:
        """Return whether a photo or a mask is here."""
        return bool(DIGEST.fullmatch(digest)) and (self._photos / f"{digest}.image").is_file()

    # -------------------------------------------------------------------------------------------------- images

    def add_images(self, job: str, first: int, files: Sequence[bytes]) -> list[str]:
        """Save a job's images from number `first` on, and return their ids."""
        ids = [f"{job}-{first + offset}" for offset in range(len(files))]
        for image_id, data in zip(ids, files, strict=True):
            with atomic_file(self._images / f"{image_id}.png") as partial:
                partial.write_bytes(data)
        return ids

    def read_image(self, image_id: str) -> bytes:
        """Return a generated PNG file. Raises `UnknownId`."""
        return _read(self._images, image_id, IMAGE_ID, ".png")

    def image_path(self, image_id: str) -> Path:
        """Return the path of a generated image. Raises `UnknownId`."""
        return _path(self._images, image_id, IMAGE_ID, ".png")

    def remove_images(self, job: str) -> None:
        """Remove all images of a job."""
        for path in self._images.glob(f"{job}-*.png"):
            path.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------ subjects

    def add_subject(self, data: bytes) -> StoredSubject:
        """Check a subject file and save it.

        Args:
            data: A safetensors file. Its header is checked here; its tensors when a job loads it.

        Raises:
            CheckpointError: If it is not a subject file.
        """
        digest = sha256_of(data)
        path = self._subjects / f"{digest}.safetensors"
        with atomic_file(path) as partial:
            partial.write_bytes(data)
            header = read_subject_header(partial)
        return StoredSubject(digest, header)

    def subject(self, digest: str) -> StoredSubject:
        """Return a subject. Raises `UnknownId`."""
        return StoredSubject(digest, read_subject_header(self.subject_path(digest)))

    def subjects(self) -> Iterator[StoredSubject]:
        """Yield all subjects, the newest first."""
        for path in sorted(self._subjects.glob("[0-9a-f]*.safetensors"), key=_modified, reverse=True):
            try:
                yield StoredSubject(path.stem, read_subject_header(path))
            except CheckpointError:  # removed meanwhile, or damaged
                continue

    def subject_path(self, digest: str) -> Path:
        """Return the path of a subject file. Raises `UnknownId`."""
        return _path(self._subjects, digest, DIGEST, ".safetensors")

    def remove_subject(self, digest: str) -> None:
        """Remove a subject. Raises `UnknownId`."""
        self.subject_path(digest).unlink(missing_ok=True)


def _path(folder: Path, name: str, pattern: re.Pattern[str], suffix: str) -> Path:
    path = folder / f"{name}{suffix}"
    if not pattern.fullmatch(name) or not path.is_file():
        raise UnknownId(f"There is no {folder.name.removesuffix('s')} {name[:80]!r} here: check the id.")
    return path


def _read(folder: Path, name: str, pattern: re.Pattern[str], suffix: str) -> bytes:
    return _path(folder, name, pattern, suffix).read_bytes()


def _write_once(path: Path, data: bytes) -> None:
    if path.exists():
        path.touch()  # so that it counts as new
    else:
        with atomic_file(path) as partial:
            partial.write_bytes(data)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
