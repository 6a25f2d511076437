"""Tuning of the tiny model, from photos to a subject file."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file, save_file

from blip_diffusion.checkpoint.subject_file import read_subject
from blip_diffusion.data.photos import PhotoBatch, PhotoBatches
from blip_diffusion.errors import BlipDiffusionError, CheckpointError, ConfigError, InputError
from blip_diffusion.fileio import locked
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.training.personalize.api import tune
from blip_diffusion.training.personalize.artifacts import Tuned
from blip_diffusion.training.personalize.config import TuneConfig
from blip_diffusion.training.personalize.early_stopping import ValidationConfig
from blip_diffusion.training.run import DivergedError
from tests.training.photos import written

QUICK = ValidationConfig(every=2, sampling_steps=1, patience=2)


def learn(
    folder: Path, model: Path, dog: Image.Image, *, name: str = "rex", resume: bool = False, **more: object
) -> Tuned:
    photos = folder / "photos" if (folder / "photos").is_dir() else written(dog, folder / "photos")
    config = TuneConfig(**{"steps": 3, "batch_size": 2, "validation": QUICK, **more})  # type: ignore[arg-type]
    out = folder / f"{name}.safetensors"
    return tune([photos], category="dog", name=name, out=out, model=model, config=config, resume=resume)


def test_tuning_writes_a_usable_subject(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    tuned = learn(tmp_path, tiny_folder, dog, rank=2)
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
    """Though it hardly heeds the prompt: it is the best there was."""
    scores = iter([(0.1, 1.0), (0.9, 0.5)])
    config = TuneConfig(trainable="embedding", batch_size=1, validation=QUICK, max_steps=2)
    tuned = tune([dog], category="dog", name="rex", out=tmp_path / "rex.safetensors", model=tiny_folder, config=config,
                 evaluator=lambda samples: next(scores))  # fmt: skip
    assert tuned.step == tuned.scores[-1].step == 2 and not tuned.overfitted


def test_best_weights_are_kept(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    """The same as a tuning of so many steps."""
    plain = learn(tmp_path / "plain", tiny_folder, dog, steps=2, trainable="embedding")
    scores = iter([(0.1, 0.1), (0.9, 0.9), (0.1, 0.1), (0.1, 0.1)])
    config = TuneConfig(trainable="embedding", batch_size=2, validation=QUICK, max_steps=6)
    best = tune([tmp_path / "plain" / "photos"], category="dog", name="rex", out=tmp_path / "rex.safetensors",
                model=tiny_folder, config=config, evaluator=lambda samples: next(scores))  # fmt: skip
    assert torch.equal(read_subject(plain.out).embedding, read_subject(best.out).embedding)


@pytest.mark.parametrize("at", [1, 2])
def test_a_resumed_tuning_equals_an_uninterrupted_one(
    at: int, tiny_folder: Path, dog: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted where a score is due, and where none is."""
    how = {"steps": None, "max_steps": 4, "rank": 2, "trainable": "lora"}
    whole = learn(tmp_path / "whole", tiny_folder, dog, **how)  # type: ignore[arg-type]
    plain = PhotoBatches.__call__

    def interrupted(self: PhotoBatches, index: int) -> PhotoBatch:
        if index == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(PhotoBatches, "__call__", interrupted)
        first = learn(tmp_path / "parts", tiny_folder, dog, **how)  # type: ignore[arg-type]
    assert first.result.stopped == "signal" and first.step == at + 1 and not first.out.exists()
    with pytest.raises(CheckpointError, match="interrupted: add --resume"):
        learn(tmp_path / "parts", tiny_folder, dog, **how)  # type: ignore[arg-type]
    resumed = learn(tmp_path / "parts", tiny_folder, dog, resume=True, **how)  # type: ignore[arg-type]
    assert whole.scores[0].subject != whole.scores[-1].subject and whole.scores[0].text != whole.scores[-1].text
    assert resumed.scores == whole.scores and resumed.step == whole.step
    one, other = load_file(whole.out), load_file(resumed.out)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def fails_at(at: int, monkeypatch: pytest.MonkeyPatch, batch: Callable[[PhotoBatch], PhotoBatch]) -> None:
    """What a batch of this number becomes."""
    plain = PhotoBatches.__call__
    monkeypatch.setattr(
        PhotoBatches,
        "__call__",
        lambda self, index: batch(plain(self, index)) if index == at else plain(self, index),
    )


def test_killed_tuning_resumes(
    tiny_folder: Path, dog: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process leaves its last checkpoint and the best weights until then."""
    how = {"steps": None, "max_steps": 6, "rank": 2}
    whole = learn(tmp_path / "whole", tiny_folder, dog, **how)  # type: ignore[arg-type]

    def killed(_: PhotoBatch) -> PhotoBatch:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("blip_diffusion.training.personalize.api.SAVE_MINUTES", 1e-9)
        fails_at(3, patch, killed)
        with pytest.raises(MemoryError):
            learn(tmp_path / "parts", tiny_folder, dog, **how)  # type: ignore[arg-type]
    assert (tmp_path / "parts/rex.safetensors.tuning/checkpoints/step-00000003").is_dir()
    resumed = learn(tmp_path / "parts", tiny_folder, dog, resume=True, **how)  # type: ignore[arg-type]
    assert resumed.scores == whole.scores
    one, other = load_file(whole.out), load_file(resumed.out)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_diverging_tuning_keeps_its_best_weights(
    tiny_folder: Path, dog: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_at(3, monkeypatch, lambda batch: {**batch, "latents": batch["latents"] * torch.nan})
    scores = iter([(0.1, 0.1), (0.9, 0.9)])
    config = TuneConfig(batch_size=1, rank=2, validation=QUICK, max_steps=6)
    with pytest.warns(match="Step 3 was not taken .*lower the learning rate.* The best earlier result is kept"):
        tuned = tune([dog], category="dog", name="rex", out=tmp_path / "rex.safetensors", model=tiny_folder,
                     config=config, evaluator=lambda samples: next(scores))  # fmt: skip
    assert tuned.result.stopped == "diverged" and tuned.result.step == 3 and tuned.step == 2
    assert read_subject(tuned.out).metadata["steps"] == 2
    with pytest.raises(DivergedError):  # without an evaluation there are no best weights
        learn(tmp_path / "blind", tiny_folder, dog, steps=6)


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


def test_two_tunings_of_one_file_at_once(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    work = tmp_path / "rex.safetensors.tuning"
    with locked(work), pytest.raises(InputError, match="Another process writes to"):
        learn(tmp_path, tiny_folder, dog, steps=1)


def test_result_is_replaced_only_by_the_same_tuning(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    """Images that were made with it need it; and nothing changes before all is known to be well."""
    first = learn(tmp_path, tiny_folder, dog, steps=1)
    log, files = first.folder / "log.jsonl", (first.out, first.folder / "log.jsonl")
    before = [file.read_bytes() for file in files]
    with pytest.raises(BlipDiffusionError, match="There is no photo at nowhere"):
        tune(["nowhere.png"], category="dog", name="rex", out=first.out, model=tiny_folder)
    with pytest.raises(InputError, match="was tuned with other steps: choose another --name or --out"):
        learn(tmp_path, tiny_folder, dog, steps=2)
    with pytest.raises(InputError, match="is finished, so there is nothing to resume: leave out --resume"):
        learn(tmp_path, tiny_folder, dog, steps=1, resume=True)
    assert [file.read_bytes() for file in files] == before
    assert learn(tmp_path, tiny_folder, dog, steps=1).step == 1 and log.is_file()
    one, other = load(before[0]), load_file(first.out)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    shutil.rmtree(first.folder)
    with pytest.raises(InputError, match="exists already: choose another --name"):
        learn(tmp_path, tiny_folder, dog, steps=1)


def test_resuming_needs_the_same_settings(
    tiny_folder: Path, dog: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = PhotoBatches.__call__

    def interrupted(self: PhotoBatches, index: int) -> PhotoBatch:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, index)

    out, config = tmp_path / "rex.safetensors", TuneConfig(steps=2, batch_size=1)
    same: dict[str, Any] = {"photos": [dog], "category": "dog", "name": "rex", "model": tiny_folder, "config": config}
    other = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    weights = load_file(other / "unet/diffusion_pytorch_model.safetensors")
    save_file({name: -tensor for name, tensor in weights.items()}, other / "unet/diffusion_pytorch_model.safetensors")

    def again(**changed: Any) -> Tuned:
        options = same | changed
        return tune(options.pop("photos"), out=out, resume=True, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PhotoBatches, "__call__", interrupted)
        assert again().step == 1
    Image.new("L", dog.size, 255).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="began with other masks"):
        again(masks=[tmp_path / "mask.png"])
    mirrored = dog.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for what, value in {"photos": [mirrored], "category": "cat", "name": "tom", "model": other}.items():
        with pytest.raises(InputError, match=f"began with other {what}: --resume with the same, or choose another"):
            again(**{what: value})
    scores = replace(config, validation=QUICK)
    trained = replace(config, seed=1, learning_rate=0.5)
    for options, what in (trained, "learning_rate and seed"), (scores, "every and sampling_steps and patience"):
        with pytest.raises(InputError, match=f"began with other {what}: --resume with the same"):
            again(config=options)
    assert again(config=replace(config, device="cpu")).step == 2  # where it is computed may change


def test_unrelated_folders_are_kept(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    """What lies in one that no tuning has made; and two files of one stem have a folder each."""
    assert learn(tmp_path, tiny_folder, dog, steps=1).folder == tmp_path / "rex.safetensors.tuning"
    letter = tmp_path / "tom.safetensors.tuning" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("dear")
    for resume in (False, True):
        with pytest.raises(InputError, match="isn't a tuning's folder: choose another --out"):
            learn(tmp_path, tiny_folder, dog, name="tom", resume=resume)
    assert letter.read_text() == "dear"
    save_file({"lora": torch.ones(1)}, tmp_path / "style.safetensors")
    with pytest.raises(InputError, match="exists already and isn't a subject file: choose another --out"):
        learn(tmp_path, tiny_folder, dog, name="style")


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
    with pytest.raises(ConfigError, match="num_class_images must not be negative"):
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
            learn(tmp_path, tiny_folder, dog, eight_bit=True)


def test_folder_in_place_of_the_file_is_refused(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "rex.safetensors").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        learn(tmp_path, tiny_folder, dog)
