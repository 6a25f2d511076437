import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip_diffusion.cli.main import main
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.images import to_pil
from blip_diffusion.pipelines.captioner import Captioner
from blip_diffusion.pipelines.image_search import ImageSearch
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from tests.models import save_blip2


@pytest.fixture(scope="module")
def folder(pipe: BlipDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's subject encoder with a language part and heads that no one has trained."""
    return save_blip2(pipe.model, tmp_path_factory.mktemp("models") / "blip2")


@pytest.fixture(scope="module")
def captioner(folder: Path) -> Captioner:
    return Captioner.from_pretrained(folder)


@pytest.fixture(scope="module")
def photos(batch: SubjectBatch, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(to_pil(batch["target"])):
        image.save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def images(photos: list[Path]) -> list[Image.Image]:
    return [Image.open(path) for path in photos]


def test_a_caption_does_not_depend_on_the_other_images(captioner: Captioner, images: list[Image.Image]) -> None:
    together = captioner(images[:3], num_beams=2, max_new_tokens=6)
    assert together == [captioner(image, num_beams=2, max_new_tokens=6)[0] for image in images[:3]]


def test_prompts_of_different_length_do_not_mix(captioner: Captioner, images: list[Image.Image]) -> None:
    """Padding lies left of the prefix, so that positions are counted alike."""
    prompts = ["a", "a photo of a dog on the beach"]
    both = captioner(images[0], prompts, num_beams=1, max_new_tokens=6)
    assert both == [captioner(images[0], prompt, num_beams=1, max_new_tokens=6)[0] for prompt in prompts]
    assert both[0] != both[1]


def test_prompts_of_questions_equal_the_published_ones(captioner: Captioner, images: list[Image.Image]) -> None:
    output = captioner.answer(images[0], "How many dogs?", num_beams=1, max_new_tokens=4)
    prompt = "Question: how many dogs? Short answer:"
    assert output == captioner(images[0], prompt, num_beams=1, max_new_tokens=4)


def wrong_calls(captioner: Captioner, images: list[Image.Image]) -> list[Any]:
    return [
        lambda: captioner([]),
        lambda: captioner("dog.png"),  # type: ignore[arg-type]
        lambda: captioner(images[0], num_beams=0),
        lambda: captioner(images[0], max_new_tokens=500),
        lambda: captioner(images[:2], ["a", "b", "c"]),
        lambda: captioner.answer(images[0], "?!"),
        lambda: captioner(images[0], "a \x1b[2J"),
        lambda: captioner.answer(images[0], "how many \x1b[2J"),
        lambda: captioner.answer(images[0], "how many dogs " * 100),
    ]


def test_bad_input_is_one_sentence(captioner: Captioner, images: list[Image.Image]) -> None:
    for call in wrong_calls(captioner, images):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_a_search_ranks_by_contrast_and_the_best_again_by_matching(folder: Path, photos: list[Path]) -> None:
    search = ImageSearch.from_pretrained(folder)
    plain = search("a dog on the beach", photos, rerank=0)
    assert sorted(match.index for match in plain) == list(range(len(photos)))
    assert [match.cosine for match in plain] == sorted((match.cosine for match in plain), reverse=True)
    again = search("a dog on the beach", photos, rerank=3)
    assert {match.index for match in again[:3]} == {match.index for match in plain[:3]}
    assert [match.index for match in again[3:]] == [match.index for match in plain[3:]]
    for match in again[:3]:
        assert match.matching is not None
        assert match.score == pytest.approx(match.matching + match.cosine)
    posterior = search("a dog on the beach", photos, rerank=3, rerank_score="posterior")
    assert [match.score for match in posterior[:3]] == sorted((match.score for match in posterior[:3]), reverse=True)
    assert {match.score for match in posterior[:3]}.isdisjoint(match.score for match in again[:3])
    with pytest.raises(InputError, match="empty"):
        search(" ", photos)
    with pytest.raises(InputError, match="is not Unicode text"):
        search("a dog \ud800", photos)
    with pytest.raises(InputError, match="no images"):
        search("a dog", [])
    with pytest.raises(InputError, match="no rerank_score"):
        search("a dog", photos, rerank_score="sum")  # type: ignore[arg-type]


def test_models_without_the_needed_parts_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no language model"):
        Captioner.from_pretrained(tiny_folder)
    with pytest.raises(CheckpointError, match="no heads"):
        ImageSearch.from_pretrained(tiny_folder)


def test_a_model_without_matching_ranks_by_contrast_alone(folder: Path, photos: list[Path]) -> None:
    """`contrast.toml` makes such a model."""
    search = ImageSearch.from_pretrained(folder)
    plain = search("a dog on the beach", photos, rerank=0)
    search.model.matching = None
    assert ImageSearch(search.model)("a dog on the beach", photos, rerank=0) == plain
    with pytest.raises(CheckpointError, match="--rerank 0"):
        search("a dog on the beach", photos)


def test_the_commands(folder: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "captions.jsonl"
    flags = ["--model", str(folder), "--num-beams", "1", "--max-new-tokens", "3"]
    assert main(["caption", str(photos[0].parent), *flags, "--out", str(out)]) == 0
    import json

    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(tmp_path / row["file_name"]).resolve() for row in rows] == photos
    assert main(["caption", str(photos[0]), *flags, "--question", "how many dogs"]) == 0
    assert main(["search", str(photos[0].parent), "a dog", "--model", str(folder), "--num-images", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 1 + 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["caption", "none.png", "--model", "FOLDER"],
        ["caption", "EMPTY", "--model", "FOLDER", "--out", "OUT"],
        ["caption", "PHOTO", "--model", "mini", "--out", "OUT"],
        ["search", "EMPTY", "a dog", "--model", "FOLDER"],
        ["search", "PHOTOS", "a dog", "--model", "mini"],
    ],
)
def test_the_commands_refuse_in_one_sentence(
    arguments: list[str], folder: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"FOLDER": folder, "EMPTY": tmp_path / "empty", "OUT": tmp_path / "out.jsonl", "PHOTO": photos[0],
              "PHOTOS": photos[0].parent}  # fmt: skip
    assert main([str(places.get(word, word)) for word in arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_images_whose_names_are_not_text_are_refused_first(
    folder: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / os.fsdecode(b"caf\xe9.png")
    image.write_bytes(photos[0].read_bytes())
    assert main(["caption", str(image), "--model", "nowhere", "--out", str(tmp_path / "out.jsonl")]) == 2
    assert r"The image 'caf\udce9.png' is not UTF-8" in capsys.readouterr().err
    flags = ["--model", str(folder), "--num-beams", "1", "--max-new-tokens", "2"]
    assert main(["caption", str(image), *flags]) == 0


def test_control_characters_in_names_never_reach_the_terminal(
    folder: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "\x1b]0;x\x07.png").write_bytes(photos[0].read_bytes())
    assert main(["caption", str(tmp_path), "--model", str(folder), "--num-beams", "1", "--max-new-tokens", "2"]) == 0
    assert main(["search", str(tmp_path), "a dog", "--model", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.count(r"\x1b]0;x\x07.png") == 2 and printed.replace("\n", "").isprintable()
