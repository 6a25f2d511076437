"""Draws the subjects beside this file in new scenes, each from one picture, and puts all of it on one page.

python examples/demo.py --out out/demo
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from blip_diffusion.cli import main as cli

SUBJECTS = {"apple.png": "apple", "armchair.png": "armchair", "dog.png": "dog", "cat.jpg": "cat"}
PROMPTS = ("on the beach", "in the snow", "on a plain blue background", "on grass", "at night under the stars")
CELL, BAND = 128, 18


def main() -> None:
    """One `blip-diffusion generate` a subject, then the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    rows = [draw(name, word, arguments) for name, word in SUBJECTS.items()]
    path = arguments.out / "contact-sheet.png"
    page(rows).save(path)
    print(f"The contact sheet: {path}")


def draw(name: str, word: str, arguments: argparse.Namespace) -> Path:
    """Draws one subject by the command line, and answers its row: the reference, then a picture for each prompt."""
    row: Path = arguments.out / Path(name).stem / "row.png"
    row.unlink(missing_ok=True)  # of another seed or model, beside which this one would be row_2.png
    reference = Path(__file__).parent / name
    command = ["generate", *PROMPTS, "--reference", str(reference), "--category", word, "--model", arguments.model]
    if cli.main([*command, "--seed", str(arguments.seed), "--out", str(row.parent), "--grid", str(row)]):
        raise SystemExit(2)
    return row


def page(rows: list[Path]) -> Image.Image:
    """The rows under their prompts."""
    pictures = [Image.open(row) for row in rows]
    sheet = Image.new("RGB", (pictures[0].width, BAND + sum(p.height + 2 for p in pictures)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, words in enumerate(("the reference", *PROMPTS)):
        pen.text((column * (CELL + 2) + 2, 3), words[:26], fill="black", font=ImageFont.load_default(10))
    top = BAND
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + 2
    return sheet


if __name__ == "__main__":
    main()
