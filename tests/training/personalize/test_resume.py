"""Interrupted, killed, diverging and repeated tunings."""

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
from blip_diffusion.errors import BlipDiffusionError, CheckpointError, InputError
from blip_diffusion.fileio import locked
from blip_diffusion.training.personalize.api import tune
from blip_diffusion.training.personalize.artifacts import Tuned
from blip_diffusion.training.personalize.config import TuneConfig
from blip_diffusion.training.run import DivergedError
from tests.training.personalize.tuning import QUICK, tune_photos


@pytest.mark.parametrize("at", [1, 2])
def test_a_resumed_tuning_equals_an_uninterrupted_one(
    at: int, tiny_folder: Path, dog: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted where a score is due, and where none is."""
    how = {"steps": None, "max_steps": 4, "rank": 2, "trainable": "lora"}
    whole = tune_photos(tmp_path / "whole", tiny_folder, dog, **how)  # type: ignore[arg-type]
    plain = PhotoBatches.__call__

    def interrupted(self: PhotoBatches, index: int) -> PhotoBatch:
        if index == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(PhotoBatches, "__call__", interrupted)
        first = tune_photos(tmp_path / "parts", tiny_folder, dog, **how)  # type: ignore[arg-type]
    assert first.result.stopped == "signal" and first.step == at + 1 and not first.out.exists()
    with pytest.raises(CheckpointError, match="interrupted: add --resume"):
        tune_photos(tmp_path / "parts", tiny_folder, dog, **how)  # type: ignore[arg-type]
    resumed = tune_photos(tmp_path / "parts", tiny_folder, dog, resume=True, **how)  # type: ignore[arg-type]
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
    whole = tune_photos(tmp_path / "whole", tiny_folder, dog, **how)  # type: ignore[arg-type]

    def killed(_: PhotoBatch) -> PhotoBatch:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("blip_diffusion.training.personalize.api.SAVE_MINUTES", 1e-9)
        fails_at(3, patch, killed)
        with pytest.raises(MemoryError):
            tune_photos(tmp_path / "parts", tiny_folder, dog, **how)  # type: ignore[arg-type]
    assert (tmp_path / "parts/rex.safetensors.tuning/checkpoints/step-00000003").is_dir()
    resumed = tune_photos(tmp_path / "parts", tiny_folder, dog, resume=True, **how)  # type: ignore[arg-type]
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
        tune_photos(tmp_path / "blind", tiny_folder, dog, steps=6)


def test_two_tunings_of_one_file_at_once(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    work = tmp_path / "rex.safetensors.tuning"
    with locked(work), pytest.raises(InputError, match="Another process writes to"):
        tune_photos(tmp_path, tiny_folder, dog, steps=1)


def test_result_is_replaced_only_by_the_same_tuning(tiny_folder: Path, dog: Image.Image, tmp_path: Path) -> None:
    """Images that were made with it need it; and nothing changes before all is known to be well."""
    first = tune_photos(tmp_path, tiny_folder, dog, steps=1)
    log, files = first.folder / "log.jsonl", (first.out, first.folder / "log.jsonl")
    before = [file.read_bytes() for file in files]
    with pytest.raises(BlipDiffusionError, match="There is no photo at nowhere"):
        tune(["nowhere.png"], category="dog", name="rex", out=first.out, model=tiny_folder)
    with pytest.raises(InputError, match="was tuned with other steps: choose another --name or --out"):
        tune_photos(tmp_path, tiny_folder, dog, steps=2)
    with pytest.raises(InputError, match="is finished, so there is nothing to resume: leave out --resume"):
        tune_photos(tmp_path, tiny_folder, dog, steps=1, resume=True)
    assert [file.read_bytes() for file in files] == before
    assert tune_photos(tmp_path, tiny_folder, dog, steps=1).step == 1 and log.is_file()
    one, other = load(before[0]), load_file(first.out)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    shutil.rmtree(first.folder)
    with pytest.raises(InputError, match="exists already: choose another --name"):
        tune_photos(tmp_path, tiny_folder, dog, steps=1)


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
        with pytest.warns(UserWarning, match=f"{out}.tuning holds no checkpoint: the run starts from the beginning"):
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
