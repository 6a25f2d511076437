"""Small folders and shards of captioned images, as users have them."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw

SCENES = ("on the beach", "in the snow", "on grass", "at night")
COLOURS = ("skyblue", "white", "green", "navy")


def picture(number: int) -> tuple[Image.Image, Image.Image]:
    """A subject before a colour, and its mask."""
    image = Image.new("RGB", (60, 48), COLOURS[number % 4])
    mask = Image.new("L", image.size, 0)
    for canvas, colour in (image, "saddlebrown"), (mask, 255):
        ImageDraw.Draw(canvas).ellipse((14 + number, 8, 44 + number, 40), fill=colour)
    return image, mask


def folder_of(folder: Path, *, subject: str = "rex", masks: bool = True, texts: bool = False) -> Path:
    """Four images; the last is held out. With `texts`, captions lie beside them."""
    folder.mkdir(parents=True)
    lines = []
    for number, scene in enumerate(SCENES):
        image, mask = picture(number)
        image.save(folder / f"{number}.png")
        if texts:
            (folder / f"{number}.txt").write_text(f"A dog {scene}.\n")
            continue
        line = {"file_name": f"{number}.png", "text": f"a dog {scene}", "category": "dog", "subject": subject}
        if masks:
            mask.save(folder / f"m{number}.png")
            line["mask"] = f"m{number}.png"
        lines.append(json.dumps(line | ({"split": "test"} if number == 3 else {})))
    if lines:
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def shard_of(path: Path, *, count: int = 4) -> Path:
    """The same as a shard, as webdataset's ShardWriter lays it out."""
    with tarfile.open(path, "w") as files:
        for number in range(count):
            image, mask = picture(number)
            table = {"text": f"a dog {SCENES[number % 4]}", "category": "dog", "subject": "rex"}
            parts = {"png": png(image), "mask.png": png(mask), "json": json.dumps(table).encode()}
            for kind, data in parts.items():
                member = tarfile.TarInfo(f"train/{number:05d}.{kind}")
                member.size = len(data)
                files.addfile(member, io.BytesIO(data))
    return path


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
