"""LAVIS' files that are damaged, incomplete or malicious."""

import io
import os
import pickle
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from blip_diffusion.checkpoint import lavis
from blip_diffusion.checkpoint.convert import convert
from blip_diffusion.errors import CheckpointError

from .folders import GOLDEN

QKV = "visual_encoder.transformer.resblocks.0.attn.in_proj_weight"


class Code:
    """A pickle that executes code when it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("harm",)


def edit_state(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "/etc/passwd" if kind != tarfile.REGTYPE else ""
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("blip-diffusion/../../unet/diffusion_pytorch_model.bin"),
        member("/unet/diffusion_pytorch_model.bin"),
        member("unet/diffusion_pytorch_model.bin", tarfile.SYMTYPE),
        member("unet/diffusion_pytorch_model.bin", tarfile.LNKTYPE),
        member("unet/diffusion_pytorch_model.bin", tarfile.CHRTYPE),
        member("unet/diffusion_pytorch_model.bin", tarfile.FIFOTYPE),
    ],
)
def test_archive_with_unsafe_members_is_refused(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as files:
        files.addfile(bad, io.BytesIO())
    with pytest.raises(CheckpointError, match="which an archive of weights doesn't need: it is refused"):
        convert(str(tmp_path / "bad.tar"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar"]


def test_oversized_archive_is_refused(tmp_path: Path) -> None:
    info = member("unet/diffusion_pytorch_model.bin", size=2**40)
    (tmp_path / "bomb.tar").write_bytes(info.tobuf() + b"\0" * 1024)
    with pytest.raises(CheckpointError, match="of 1024 GiB: it is refused"):
        convert(str(tmp_path / "bomb.tar"), tmp_path / "out")


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_truncated_archive_is_refused(archive: Path, tmp_path: Path, length: int) -> None:
    archive.write_bytes(archive.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"not an archive that can be read|missing"):
        convert(str(archive), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("packed", ["gz", "xz", "bz2"])
def test_damaged_archive_is_refused(lavis_folder: Path, tmp_path: Path, packed: str) -> None:
    with tarfile.open(tmp_path / "whole.tar", f"w:{packed}") as files:
        files.add(lavis_folder, arcname="blip-diffusion")
    data, rng = (tmp_path / "whole.tar").read_bytes(), random.Random(0)
    for _ in range(6):
        offset = rng.randrange(100, len(data) - 100)
        (tmp_path / "bad.tar").write_bytes(data[:offset] + rng.randbytes(40) + data[offset + 40 :])
        with pytest.raises(CheckpointError, match=r"not an archive that can be read .*: fetch it again"):
            lavis.unpack(tmp_path / "bad.tar", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (lavis.BLIP, lambda s: s.pop("query_tokens"), r"the Q-Former: 1 missing \(qformer.query_tokens\)"),
        (lavis.BLIP, lambda s: s.update(more=torch.ones(1)), r"the Q-Former: 1 unexpected \(more\)"),
        (lavis.BLIP, lambda s: s.update(query_tokens=torch.ones(1, 3, 16)), r"is \(1, 3, 16\), not \(1, 4, 16\)"),
        (lavis.BLIP, lambda s: s.update({"Qformer.cls.predictions.decoder.bias": torch.ones(64)}), "is not tied to"),
        (lavis.BLIP, lambda s: s.update(query_tokens=s["query_tokens"].to(torch.int8)), "1 not of floats"),
        (lavis.BLIP, lambda s: s.update({QKV: torch.tensor(1.0)}), "3 of another shape"),
        (lavis.PROJECTION, lambda s: s.pop("dense1.bias"), "the Q-Former: 1 missing"),
        (lavis.TEXT, lambda s: s.pop("text_model.final_layer_norm.bias"), "the text encoder: 1 missing"),
        (lavis.UNET, lambda s: s.update(more=torch.ones(1)), "the unet: 1 unexpected"),
        (lavis.VAE, lambda s: s.pop("encoder.conv_in.bias"), "the vae: 1 missing"),
        (lavis.UNET, lambda s: (s.clear(), s.update(code=Code())), "running it could do harm: it is refused"),
    ],
)
def test_damaged_lavis_files_are_refused(
    lavis_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(lavis_folder, tmp_path / "copy"))
    edit_state(folder / name, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(str(folder), tmp_path / "out", base=str(GOLDEN))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (Code(), "running it could do harm"),
        ([1, 2], "must be one tensor"),
        (torch.ones(4, 16), "must be one tensor"),
    ],
)
def test_invalid_tuned_subject_is_refused(
    lavis_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subject: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(lavis_folder, tmp_path / "copy"))
    (folder / lavis.CACHE).parent.mkdir()
    torch.save(subject, folder / lavis.CACHE)
    with pytest.raises(CheckpointError, match=message):
        convert(str(folder), tmp_path / "out", base=str(GOLDEN))
    assert not Path("harm").exists()


def test_missing_file_is_named(lavis_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(lavis_folder, tmp_path / "copy"))
    (folder / lavis.UNET).unlink()
    with pytest.raises(CheckpointError, match=r"unet/diffusion_pytorch_model\.bin missing"):
        convert(str(folder), tmp_path / "out", base=str(GOLDEN))


def test_invalid_tuned_checkpoint_is_refused(tuned_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="name the model that it was tuned from with --base"):
        convert(str(tuned_checkpoint), tmp_path / "out")
    with (tmp_path / "code.pth").open("wb") as file:
        pickle.dump({"model": Code()}, file)
    with pytest.raises(CheckpointError, match="running it could do harm"):
        convert(str(tmp_path / "code.pth"), tmp_path / "out", base=str(GOLDEN))
    torch.save({"model": {"unet.conv_in.bias": torch.ones(8)}}, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match="lacks a U-Net or ctx_embeddings_cache"):
        convert(str(tmp_path / "half.pth"), tmp_path / "out", base=str(GOLDEN))


def test_lavis_output_needs_clip_image_encoder(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="LAVIS supports only CLIP's image encoder"):
        convert(str(tiny_folder), tmp_path / "out", to="lavis")


def pax_header(path: Path) -> None:
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as files:
        member = tarfile.TarInfo("blip/x")
        member.pax_headers = {"comment": "x" * 2**21}
        files.addfile(member)


def long_name(path: Path) -> None:
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as files:
        files.addfile(tarfile.TarInfo("blip/" + "x" * 2**21))


def many_members(path: Path) -> None:
    with tarfile.open(path, "w:gz") as files:
        for number in range(1100):
            files.addfile(tarfile.TarInfo(f"blip/{number}"))


@pytest.mark.parametrize(
    ("write", "sentence"),
    [(pax_header, "has a header of"), (long_name, "has a header of"), (many_members, "holds more than 1000 files")],
)
def test_archives_that_would_fill_memory_or_time(write: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    write(tmp_path / "x.tar.gz")
    with pytest.raises(CheckpointError, match=sentence):
        lavis.unpack(tmp_path / "x.tar.gz", tmp_path / "out")
