"""Scenes: consistent tables, and rejected images."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image

from blip_diffusion.data.build import scenes as module
from blip_diffusion.data.build.scenes import EMOJI, PHOTOGRAPHS, PHRASES, VENDORS, scenes

RECT = '<rect width="16" height="16" rx="{radius}" fill="#38f"/>'


@pytest.fixture
def vendor(tmp_path: Path) -> Path:
    icons = {"icons": {"desert": {"body": RECT.format(radius=1)}, "sunset": {"body": RECT.format(radius=8)}}}
    (tmp_path / "package").mkdir()
    (tmp_path / "package/icons.json").write_text(json.dumps(icons))
    return tmp_path


def test_every_scene_word_has_phrases_and_a_training_scene() -> None:
    assert all(0 < row["horizon"] < 1 for row in (*PHOTOGRAPHS, *EMOJI))
    held = {row["word"] for row in PHOTOGRAPHS if row.get("split") == "heldout"}
    trained = {row["word"] for row in PHOTOGRAPHS if "split" not in row}
    assert held <= trained and len(held) >= 15
    assert trained | {row["word"] for row in EMOJI} == set(PHRASES)
    assert all(1 < len(set(phrases)) <= 3 for phrases in PHRASES.values())
    assert {vendor for row in EMOJI for vendor in row.get("heldout", ())} <= set(VENDORS)


def test_a_phrase_belongs_to_one_word() -> None:
    owners: dict[str, list[str]] = defaultdict(list)
    for word, phrases in PHRASES.items():
        for phrase in phrases:
            owners[phrase].append(word)
    assert all(len(words) == 1 for words in owners.values())


def test_only_full_tiles_are_scenes(vendor: Path) -> None:
    result = list(scenes("noto", vendor, "Apache-2.0"))
    assert [(scene.word, scene.source) for scene, _ in result] == [("desert", "noto desert")]
    scene, image = result[0]
    assert scene.phrases == PHRASES["desert"] and scene.licence == "Apache-2.0" and scene.split == "train"
    assert image.mode == "RGB" and image.width / image.height == pytest.approx(208 / 160, rel=0.02)


def test_unreadable_files_are_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/tuxpaint/templates"
    folder.mkdir(parents=True)
    Image.new("RGB", (640, 480), "blue").save(folder / "ocean_waves.jpg")
    Image.new("RGB", (640, 480), "green").save(folder / "cliff.jpg")
    (folder / "rocks.jpg").write_text("no image")
    result = {scene.word: scene.split for scene, _ in scenes("tuxpaint-data", tmp_path, "GPL-2.0-or-later")}
    assert result == {"sea": "heldout", "mountains": "train"}


def test_decompression_bomb_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(module, "LARGEST", 64 * 64 - 1)
    assert module._opened(tmp_path / "a.png") is None
