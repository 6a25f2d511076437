"""One's own images with captions: folders, shards, and the pairs that training gets of them."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from blip_diffusion.data.captioned.batches import CaptionedBatches
from blip_diffusion.data.captioned.image_folder import caption_reader, read_folder
from blip_diffusion.data.captioned.rows import CaptionedImage, row_of, scene_of
from blip_diffusion.data.captioned.shards import read_shards, shards_of
from blip_diffusion.errors import DataError
from tests.data.captioned.written import folder_of, picture, png, shard_of


def batches(rows: list[CaptionedImage], **more: Any) -> CaptionedBatches:
    return CaptionedBatches(rows, **{"size": 32, "object_crop_size": 16, "batch_size": 3, "seed": 0, **more})


def test_a_folder_and_a_shard_hold_the_same(tmp_path: Path) -> None:
    rows = read_folder(folder_of(tmp_path / "photos"))
    assert [(row.caption, row.category, row.subject, row.held_out) for row in rows[2:]] == [
        ("a dog on grass", "dog", "rex", False), ("a dog at night", "dog", "rex", True)]  # fmt: skip
    shard_of(tmp_path / "a.tar", count=2)
    shard_of(tmp_path / "b.tar")
    packed = read_shards(shards_of(tmp_path))
    assert len(packed) == 6 and packed[0].name == f"{tmp_path / 'a.tar'}:train/00000"
    for one, other in zip(rows, packed[2:], strict=True):
        assert (one.caption, one.category, one.read()) == (other.caption, other.category, other.read())
        assert all(
            a is not None and b is not None and a.tobytes() == b.tobytes()
            for a, b in zip(one.open(), other.open(), strict=True)
        )


def test_captions_lie_beside_images(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", texts=True)
    (folder / "sub").mkdir()
    picture(0)[0].save(folder / "sub" / "5.jpg")
    picture(0)[0].save(folder / "._0.png")
    rows = read_folder(folder)
    assert [row.caption for row in rows] == [
        "A dog on the beach.", "A dog in the snow.", "A dog on grass.", "A dog at night."]  # fmt: skip
    caption_of = caption_reader()
    assert caption_of(folder / "1.png") == "A dog in the snow." and caption_of(folder / "sub" / "5.jpg") == ""
    assert caption_of(folder_of(tmp_path / "table") / "1.png") == "a dog in the snow"


def test_captions_of_photos_are_found_by_any_path(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "table")
    assert caption_reader()(tmp_path / "table" / ".." / "table" / "1.png") == "a dog in the snow"
    (folder / "metadata.jsonl").rename(folder / "metadata.csv")
    with pytest.warns(match=r"metadata.csv is not read: write captions into metadata.jsonl"):
        assert caption_reader()(folder / "1.png") == ""


@pytest.mark.parametrize(
    ("caption", "category", "scene"),
    [
        ("A dog on the beach.", "dog", "on the beach"),
        ("the big dog", "dog", "the big dog"),
        ("dogs run", "dog", "dogs run"),
        ("an owl", "owl", ""),
        ("a dog", "", "a dog"),
        ("a (dog on grass", "(dog", "on grass"),
    ],
)
def test_a_scene_is_a_caption_without_its_subject(caption: str, category: str, scene: str) -> None:
    assert scene_of(caption, category) == scene


def test_a_reference_is_another_image_of_the_subject(tmp_path: Path) -> None:
    rows = [row for row in read_folder(folder_of(tmp_path / "photos")) if not row.held_out]
    batch = batches(rows)(0)
    assert sorted(batch["caption"]) == ["a dog in the snow", "a dog on grass", "a dog on the beach"]
    assert batch["category"] == ["dog"] * 3 and batch["identity"].tolist() == [0, 0, 0]
    assert {key: tuple(value.shape) for key, value in batch.items() if isinstance(value, torch.Tensor)} == {
        "reference": (3, 3, 32, 32), "object_crop": (3, 4, 16, 16), "target": (3, 3, 32, 32),
        "target_alpha": (3, 1, 32, 32), "frames": (3, 1, 4), "identity": (3,)}  # fmt: skip
    for target, reference in zip(batch["target"], batch["reference"], strict=True):
        assert (target[:, 0, 0] - reference[:, 0, 0]).abs().max() > 0.1  # another background
        assert (reference[:, 16, 16] - torch.tensor([139, 69, 19]) / 255).abs().max() < 0.02
    assert 0.2 < batch["target_alpha"].mean() < 0.5
    crops = batch["object_crop"]
    assert (crops[:, :3, 0, 0] == 0).all() and (crops[:, 3, 8, 8] == 1).all()


def test_a_lone_subject_is_cut_out_for_its_reference(tmp_path: Path) -> None:
    """On a plain colour, framed; its frame in the target is where its mask says."""
    batch = batches(read_folder(folder_of(tmp_path / "photos", subject=""))[:1], batch_size=1)(0)
    reference = batch["reference"][0]
    assert (reference[:, :2].flatten(1).std(1) < 0.02).all() and batch["reference_caption"] == ["a dog"]
    left, top, width, height = batch["frames"][0, 0].tolist()
    assert abs(left + width / 2 - 23 / 48) < 0.04 and abs(top + height / 2 - 0.5) < 0.04 and 0.6 < height < 0.85


def test_a_batch_is_a_function_of_its_index(tmp_path: Path) -> None:
    """Whatever was asked for before: a resumed run gets the same. Each round shows every image once."""
    rows = read_folder(folder_of(tmp_path / "photos"))
    first = batches(rows, batch_size=2)
    seen = [first(index) for index in range(6)]
    again = batches(rows, batch_size=2)
    for index in (5, 0, 3):
        for key, value in again(index).items():
            other = seen[index][key]  # type: ignore[literal-required]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    assert all(len({*seen[i]["caption"], *seen[i + 1]["caption"]}) == 4 for i in (0, 2, 4))


def test_without_a_subject_images_and_captions_stay_as_they_are(tmp_path: Path) -> None:
    rows = read_folder(folder_of(tmp_path / "photos", texts=True))
    batch = batches(rows, batch_size=4, with_subject=False)(0)
    assert torch.equal(batch["reference"], batch["target"]) and "A dog at night." in batch["caption"]
    with pytest.raises(DataError, match=r"0.png has no category, as 4 of 4 images"):
        batches(rows)


def test_a_damaged_image_is_passed_over(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", texts=True)
    (folder / "2.png").write_bytes(b"no image")
    with pytest.warns(match=r"2.png is passed over"):
        batch = batches(read_folder(folder), batch_size=4, with_subject=False)(0)
    assert len(batch["caption"]) == 4 and "A dog on grass." not in batch["caption"]
    for path in folder.glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.warns(match="is passed over"), pytest.raises(DataError, match="16 images in a row can't be read"):
        batches(read_folder(folder), with_subject=False)(0)


DOG = json.dumps({"file_name": "0.png", "text": "a dog"})


def line(text: str | bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        data = text.encode() if isinstance(text, str) else text
        (folder_of(folder / "f") / "metadata.jsonl").write_bytes(data)
        return folder / "f"

    return write


def tar(
    name: str, data: bytes = b"dog", *, kind: bytes = tarfile.REGTYPE, copies: int = 1, also: str = ""
) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with tarfile.open(folder / "x.tar", "w") as files:
            for one in [name] * copies + [also] * bool(also):
                member = tarfile.TarInfo(one)
                member.size, member.type, member.linkname = len(data), kind, "/etc/passwd"
                files.addfile(member, io.BytesIO(data))
        return folder

    return write


def long_header(folder: Path) -> Path:
    with tarfile.open(folder / "x.tar", "w", format=tarfile.PAX_FORMAT) as files:
        member = tarfile.TarInfo("1.png")
        member.pax_headers = {"comment": "x" * 2**21}
        files.addfile(member)
    return folder


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda folder: folder, "no image with a caption in"),
        (line("{"), "metadata.jsonl, line 1, is not valid JSON"),
        (line("[1]"), "line 1, is not a JSON object"),
        (line(json.dumps({"file_name": "gone.png", "text": "a dog"})), "line 1, names the file 'gone.png'"),
        (line(json.dumps({"file_name": "../f/0.png", "text": "a dog"})), None),
        (line(json.dumps({"file_name": "/etc/hostname", "text": "a dog"})), "outside of|which is not in"),
        (line(json.dumps({"file_name": "0.png"})), "0.png has no caption"),
        (line(json.dumps({"file_name": "0.png", "text": ["a"]})), "has a text that is no text"),
        (line(json.dumps({"file_name": "0.png", "text": "a" * 3000})), "caption of 3000 letters"),
        (line("[" * 5000), "is not valid JSON"),
        (line("1" * 200_000), "more than 100000 bytes"),
        (line(json.dumps({"text": "a dog"})), "line 1, has no file_name"),
        (line(f"{DOG}\n\n{DOG}"), "line 3, names .*0.png, as .*line 1, does"),
        (line(f"{DOG}\n{DOG.replace('0.png', './m0.png/../0.png')}"), "line 2, names the file"),
        (line(f"{DOG}\n{DOG.replace('0.png', '../f/0.png')}"), "line 2, names .*0.png, as .*line 1, does"),
        (line(json.dumps({"file_name": "0.png", "text": "a \0 dog"})), "has a text with control characters"),
        (line(json.dumps({"file_name": "0.png", "text": "a dog", "category": "d" * 300})), "category of 300 letters"),
        (line(json.dumps({"file_name": "0.png", "text": "a dog", "split": "tset"})), "has the split 'tset': use train"),
        (line("{'file_name': '0.png'}".encode("utf-16")), "line 1, is not UTF-8 text"),
        (line(DOG.replace("dog", "café").encode("latin-1")), "line 1, is not UTF-8 text"),
        (tar("1.txt", copies=2), "holds '1.txt' twice"),
        (tar("1.txt", "café".encode("latin-1"), also="1.png"), "a caption that is not UTF-8 text"),
        (tar("1.txt"), "no image with a caption"),
        (tar("1.png", data=b"", kind=tarfile.SYMTYPE), "is no plain file"),
        (tar("1.png", data=b"", kind=tarfile.FIFOTYPE), "is no plain file"),
        (long_header, "has a header of"),
    ],
)
def test_unreadable_data_is_refused(write: Callable[[Path], Path], sentence: str | None, tmp_path: Path) -> None:
    place = write(tmp_path)
    read = (lambda: read_shards(shards_of(place))) if shards_of(place) else (lambda: read_folder(place))
    if sentence is None:
        assert len(read()) == 1
        return
    with pytest.raises(DataError, match=sentence):
        read()


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "a.tar")
    shard.write_bytes(b"x" * 4000)
    with pytest.raises(DataError, match=r"a.tar is not a shard that can be read"):
        read_shards([shard])


def test_a_mask_of_another_shape_is_refused() -> None:
    image, mask = picture(0)
    row = row_of("1.png", {"text": "a dog"}, lambda: png(image), lambda: png(mask.crop((0, 0, 20, 48))))
    with pytest.raises(ValueError, match=r"The mask of 1.png is 20 x 48, of another shape"):
        row.open()
