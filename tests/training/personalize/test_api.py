"""Tuning of the tiny model, from photos to a subject file."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from blip_diffusion.checkpoint.subject_file import read_subject
from blip_diffusion.data.photos import PhotoBatches
from blip_diffusion.errors import BlipDiffusionError, ConfigError, InputError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.training.personalize.api import tune
from blip_diffusion.training.personalize.config import TuneConfig
from tests.training.personalize.tuning import QUICK, tune_photos
from tests.training.photos import written


def test_tuning_writes_a_usable_subject(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    tuned = tune_photos(tmp_path, tiny_folder, dog, rank=2)
    assert tuned.out == tmp_path / "rex.safetensors" and tuned.step == 3 and tuned.result.stopped == "done"
    rex = read_subject(tuned.out)
    assert rex.metadata["steps"] == 3 and rex.metadata["photos"] == 3 and rex.category == "dog" and rex.thumbnail
    pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_subject(tuned.out)
    assert pipe("on the beach", num_inference_steps=1).images[0].size == (32, 32)
    start = pipe.encode_subject([Image.open(path) for path in sorted((tmp_path / "photos").iterdir())], "dog")
    assert 0 < (rex.embedding - start).abs().max() < 0.1  # it begins at the photos' mean
    assert not (tuned.folder / "checkpoints").exists()


def test_tuning_stops_early(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    scores = iter([(0.5, 1.0), (0.8, 0.9), (0.9, 0.3), (1.0, 0.2)])
    config = TuneConfig(trainable="embedding", batch_size=1, validation=QUICK, max_steps=20)
    tuned = tune(
        [written(dog, tmp_path / "photos")], category="dog", name="rex", out=tmp_path / "rex.safetensors",
        model=tiny_folder, config=config, evaluator=lambda samples: next(scores),
    )  # fmt: skip
    assert tuned.result.stopped == "hook" and tuned.result.step == 6 and tuned.step == 2 and tuned.overfitted
    assert read_subject(tuned.out).metadata["steps"] == 2
    assert sorted(path.name for path in tuned.folder.iterdir()) == [
        "curve.png", "log.jsonl", "run.json", "samples", "scores.jsonl", "strip.png"]  # fmt: skip


def test_kept_step_is_not_reported_as_overfitted(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    """Though its text score is low: it has the best score of all steps."""
    scores = iter([(0.1, 1.0), (0.9, 0.5)])
    config = TuneConfig(trainable="embedding", batch_size=1, validation=QUICK, max_steps=2)
    tuned = tune([dog], category="dog", name="rex", out=tmp_path / "rex.safetensors", model=tiny_folder, config=config,
                 evaluator=lambda samples: next(scores))  # fmt: skip
    assert tuned.step == tuned.scores[-1].step == 2 and not tuned.overfitted


def test_best_weights_are_kept(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    """The same as a tuning of so many steps."""
    plain = tune_photos(tmp_path / "plain", tiny_folder, dog, steps=2, trainable="embedding")
    scores = iter([(0.1, 0.1), (0.9, 0.9), (0.1, 0.1), (0.1, 0.1)])
    config = TuneConfig(trainable="embedding", batch_size=2, validation=QUICK, max_steps=6)
    best = tune([tmp_path / "plain" / "photos"], category="dog", name="rex", out=tmp_path / "rex.safetensors",
                model=tiny_folder, config=config, evaluator=lambda samples: next(scores))  # fmt: skip
    assert torch.equal(read_subject(plain.out).embedding, read_subject(best.out).embedding)


@pytest.mark.parametrize("method", ["dreambooth", "dreambooth-lora", "textual-inversion"])
def test_baseline_methods_write_usable_files(method: str, tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    prior = 1 if method == "dreambooth" else 0
    config = TuneConfig(method=method, steps=1, batch_size=1, num_class_images=prior, mixed_precision="auto")  # type: ignore[arg-type]
    out = tmp_path / ("rex" if method == "dreambooth" else "rex.safetensors")
    if method == "dreambooth":
        out.mkdir()  # an empty folder is as good as none
    tuned = tune([dog], category="dog", name="rex", out=out, model=tiny_folder, config=config)
    assert tuned.out == out and (out / "model_index.json").is_file() == (method == "dreambooth")


def test_captions_and_class_images_are_used(
    tiny_folder: Path, dog: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A photo's caption is in its prompt, and given class images are the prior."""
    photos, others = written(dog, tmp_path / "photos"), tmp_path / "others"
    for number, path in enumerate(sorted(photos.iterdir())):
        path.with_suffix(".txt").write_text(f"a dog number {number}")
    others.mkdir()
    for number in range(2):
        dog.rotate(90 * number).save(others / f"{number}.png")
    prompts, batches = [], []
    encode, deal = BlipDiffusion.text_states, PhotoBatches.__call__
    monkeypatch.setattr(
        BlipDiffusion, "text_states", lambda self, p, *more: prompts.append(p) or encode(self, p, *more)
    )
    monkeypatch.setattr(PhotoBatches, "__call__", lambda self, i: batches.append(deal(self, i)) or batches[-1])
    config = TuneConfig(steps=1, batch_size=2, rank=2)
    out = tmp_path / "rex.safetensors"
    same = {"category": "dog", "name": "rex", "out": out, "model": tiny_folder, "config": config}
    tune([photos], class_images=others, **same)  # type: ignore[arg-type]
    assert [sentence.split(" number ")[0] for sentence in prompts[0]] == ["a dog", "a dog"] and len(
        set(prompts[0])
    ) == 2
    assert batches[0]["prior"].shape == batches[0]["latents"].shape
    with pytest.raises(InputError, match="was tuned with other class images and num_class_images"):
        tune([photos], **same)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="There are 0 class images in"):
        tune([photos], class_images=tmp_path / "rex.safetensors.tuning" / "..", **same)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "image", [Image.new("RGBA", (40, 40)), Image.new("RGB", (40, 40), "red")], ids=["clear", "red"]
)
def test_a_blank_photo_is_refused(image: Image.Image, tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "blank.png")
    out = tmp_path / "rex.safetensors"
    with pytest.raises(InputError, match=r"blank\.png has only one colour"):
        tune([dog, tmp_path / "blank.png"], category="dog", name="rex", out=out, model=tiny_folder, masks="none")
    assert not out.exists() and not (tmp_path / "rex.safetensors.tuning").exists()


def test_unrelated_folders_are_kept(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    """What lies in one that no tuning has made; and two files of one stem have a folder each."""
    assert tune_photos(tmp_path, tiny_folder, dog, steps=1).folder == tmp_path / "rex.safetensors.tuning"
    letter = tmp_path / "tom.safetensors.tuning" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("dear")
    for resume in (False, True):
        with pytest.raises(InputError, match="isn't a tuning's folder: choose another --out"):
            tune_photos(tmp_path, tiny_folder, dog, name="tom", resume=resume)
    assert letter.read_text() == "dear"
    save_file({"lora": torch.ones(1)}, tmp_path / "style.safetensors")
    with pytest.raises(InputError, match="exists already and isn't a subject file: choose another --out"):
        tune_photos(tmp_path, tiny_folder, dog, name="style")


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"category": "a very big brown dog"}, "category .* is too long"),
        ({"category": ""}, "category is empty"),
        ({"name": "../rex"}, "name .* can't be used"),
        ({"photos": []}, "no photos"),
        ({"photos": ["nowhere.png"]}, "There is no photo at nowhere"),
        ({"out": f"{__file__}/rex.safetensors"}, "Nothing can be written to"),
        ({"out": "rex.png"}, "must end in .safetensors, for example rex.safetensors"),
        ({"out": "."}, "--out . is no name: use for example rex.safetensors"),
        ({"out": "/"}, "--out / is no name: use for example rex.safetensors"),
        ({"out": "rex.safetensors", "config": TuneConfig(method="dreambooth")}, "DreamBooth writes a folder: use rex."),
        ({"model": "nowhere"}, "no model nowhere"),
        ({"masks": [Path("a"), Path("b")]}, "2 masks for 1 photos"),
    ],
)
def test_invalid_input_is_refused_before_training(
    more: dict[str, object], sentence: str, tiny_folder: Path, dog: Image.Image, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    options = {"photos": [dog], "category": "dog", "name": "rex", "model": tiny_folder, **more}
    with pytest.raises(BlipDiffusionError, match=sentence):
        tune(options.pop("photos"), **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_learning_rate_depends_on_the_width() -> None:
    assert TuneConfig(trainable="unet").resolved(768).learning_rate == 5e-6
    assert TuneConfig(trainable="unet").resolved(256).learning_rate == 1e-4
    assert TuneConfig(method="dreambooth", learning_rate=0.5).resolved(768).learning_rate == 0.5
    with pytest.raises(ConfigError, match="learning_rate must be positive"):
        TuneConfig(learning_rate=0.0)


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps is 0"):
        TuneConfig(steps=0)
    with pytest.raises(ConfigError, match="seed must be a number below"):
        TuneConfig(seed=2**63)
    with pytest.raises(ConfigError, match="num_class_images is -1: use 0 to 1000"):
        TuneConfig(num_class_images=-1)
    with pytest.raises(ConfigError, match="num_class_images have no effect with textual-inversion"):
        TuneConfig(method="textual-inversion", num_class_images=8)
    with pytest.raises(ConfigError, match="num_class_images have no effect with an embedding alone"):
        TuneConfig(trainable="embedding", num_class_images=8)
    TuneConfig(method="dreambooth", trainable="embedding", num_class_images=8)  # no effect with this method


def test_eight_bit_adam_needs_bitsandbytes(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="pip install bitsandbytes"):
            tune_photos(tmp_path, tiny_folder, dog, eight_bit=True)


def test_folder_in_place_of_the_file_is_refused(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "rex.safetensors").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        tune_photos(tmp_path, tiny_folder, dog)
