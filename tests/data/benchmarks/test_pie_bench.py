"""PIE-Bench's file: which of its edits replace a subject, and what a damaged entry says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip_diffusion.data.benchmarks.pie_bench import PieEdit, read_pie_bench, subject_edit
from blip_diffusion.errors import BlipDiffusionError, DataError, InputError

ENTRY: dict[str, Any] = {
    "image_path": "1_change_object/1.png",
    "original_prompt": "a white [cat] sitting on a bench",
    "editing_prompt": "a white [dog] sitting on a bench",
    "editing_instruction": "Change the cat to a dog",
    "editing_type_id": "1",
    "blended_word": "cat dog",
    "mask": [9, 3, 17, 3],
}


def edit(**change: Any) -> PieEdit | None:
    return subject_edit("000000000001", ENTRY | change, Path("photos"))


def test_a_replaced_subject_is_an_edit() -> None:
    found = edit()
    assert found is not None
    assert (found.source_category, found.target_category) == ("white cat", "white dog")
    assert found.scene == "sitting on a bench" and found.target_prompt == "a white dog sitting on a bench"
    assert found.photo == Path("photos", "1_change_object", "1.png")
    alone = edit(original_prompt="An [apple]", editing_prompt="a [red pear]", blended_word="apple pear")
    assert alone is not None and (alone.source_category, alone.target_category, alone.scene) == (
        "apple",
        "red pear",
        "",
    )


@pytest.mark.parametrize(
    "change",
    [
        {"editing_prompt": "a white cat sitting on a bench", "blended_word": ""},
        {"editing_prompt": "a [black] cat sitting on a bench", "blended_word": "cat cat"},
        {"editing_prompt": "a white cat sitting on a [chair]", "blended_word": "bench chair"},
        {"editing_prompt": "a white cat and a dog sitting on a bench", "blended_word": "cat dog"},
        {
            "original_prompt": "a photo of a big white cat",
            "editing_prompt": "a photo of a big white dog",
        },
    ],
    ids=["nothing", "colour", "another object", "added object", "no subject first"],
)
def test_other_edits_are_skipped(change: dict[str, Any]) -> None:
    assert edit(**change) is None


def write(folder: Path, entries: Any) -> Path:
    photo = folder / "annotation_images" / "1_change_object" / "1.png"
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (32, 24), "grey").save(photo)
    (folder / "mapping_file.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return folder


def test_masks_are_runs_with_the_border(tmp_path: Path) -> None:
    write(tmp_path, {"1": ENTRY | {"mask": [66, 3, 736, 10**9]}, "2": ENTRY | {"blended_word": ""}})
    (found,), skipped = read_pie_bench(tmp_path)
    photo, mask = found.open()
    inside = np.asarray(mask)[1:-1, 1:-1] > 0
    assert skipped == 1 and photo.size == mask.size == (32, 24)
    assert inside.sum() == 3 and inside[1, 1:4].all() and (np.asarray(mask)[0] == 255).all()


@pytest.mark.parametrize(
    ("entries", "kind", "named"),
    [
        ("{", DataError, "can't be read"),
        ([], DataError, "is a list"),
        ({"1": ENTRY | {"blended_word": ""}}, DataError, "no edit that replaces"),
        ({"1": {}}, DataError, "has no 'original_prompt'"),
        ({"1": []}, DataError, "wrong entry '1'"),
        ({"../1": ENTRY}, DataError, "other characters"),
        ({"1": ENTRY | {"mask": [1, 2, 3]}}, DataError, "pairs of numbers"),
        ({"1": ENTRY | {"image_path": "../1.png"}}, DataError, "leaves the folder"),
        ({"1": ENTRY | {"image_path": "2.png"}}, InputError, "2.png"),
    ],
    ids=str,
)
def test_damaged_files_are_one_sentence(
    tmp_path: Path, entries: Any, kind: type[BlipDiffusionError], named: str
) -> None:
    with pytest.raises(kind, match=named) as caught:
        read_pie_bench(write(tmp_path, entries))
    assert "\n" not in str(caught.value)


def test_the_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mapping_file"):
        read_pie_bench(tmp_path)
