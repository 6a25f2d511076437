"""Conversion between LAVIS' files and model folders. The files are made from the published code's weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from blip_diffusion.checkpoint import lavis
from blip_diffusion.checkpoint.convert import convert
from blip_diffusion.cli.main import main
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

from .folders import GOLDEN, WIDTH, WORD_LIST, WORDS


def sample_images(folder: Path, dog: Image.Image, **options: Any) -> Tensor:
    pipe = BlipDiffusionPipeline.from_pretrained(folder, qformer_tokenizer=WORD_LIST)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    return pipe("swimming", dog, "teapot", "dog", height=32, width=32, num_inference_steps=2, generator=noise,
                output_type="pt", **options).images  # fmt: skip


def same(one: Path, other: Path) -> bool:
    ours, theirs = (torch.load(path, weights_only=True) for path in (one, other))
    if isinstance(ours, Tensor):
        return torch.equal(ours, theirs)
    theirs = {name: tensor for name, tensor in theirs.items() if not name.endswith("position_ids")}
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("packed", [False, True])
def test_lavis_round_trip_is_exact(
    lavis_folder: Path, archive: Path, tmp_path: Path, packed: bool, dog: Image.Image
) -> None:
    convert(str(archive if packed else lavis_folder), tmp_path / "ours", base=str(GOLDEN))
    for part in ("qformer", "text_encoder", "unet", "vae"):
        (weights,) = (tmp_path / "ours" / part).glob("*.safetensors")
        ours, published = load_file(weights), load_file(GOLDEN / part / weights.name)
        published = {name: tensor for name, tensor in published.items() if not name.endswith("position_ids")}
        assert ours.keys() == published.keys()
        assert all(torch.equal(ours[name], published[name]) for name in ours)
    assert torch.equal(sample_images(tmp_path / "ours", dog), sample_images(GOLDEN, dog))
    for _ in range(2):  # the second takes the first one's place
        convert(str(tmp_path / "ours"), tmp_path / "back", to="lavis")
    for name in lavis.FILES[:-1]:
        assert same(tmp_path / "back" / name, lavis_folder / name), name


def test_published_folder_round_trip_is_exact(tmp_path: Path) -> None:
    convert(str(GOLDEN), tmp_path / "lavis", to="lavis")
    convert(str(tmp_path / "lavis"), tmp_path / "back", base=str(GOLDEN))
    assert not (tmp_path / "back" / "heads.safetensors").exists()  # there were none
    for part in ("qformer", "text_encoder", "unet", "vae"):
        (weights,) = (tmp_path / "back" / part).glob("*.safetensors")
        ours, published = load_file(weights), load_file(GOLDEN / part / weights.name)
        unread = {name for name in published if name.endswith("position_ids")}
        assert ours.keys() == published.keys() - unread
        assert all(torch.equal(ours[name], published[name]) for name in ours)


def test_stage_1_heads_are_converted(lavis_folder: Path, tmp_path: Path) -> None:
    from blip_diffusion.checkpoint.components import load_heads
    from blip_diffusion.modules.heads import ContrastiveHead, LanguageHead, MatchingHead
    from blip_diffusion.modules.qformer import QFormerConfig

    convert(str(lavis_folder), tmp_path / "ours", base=str(GOLDEN))
    config = QFormerConfig(width=WIDTH, vocabulary=WORDS, heads=2)
    ours = {"contrastive": ContrastiveHead(WIDTH), "matching": MatchingHead(WIDTH), "language": LanguageHead(config)}
    assert sorted(load_heads(ours, tmp_path / "ours")) == sorted(ours)
    assert ours["contrastive"].temperature == torch.tensor(0.05)


def test_tuned_checkpoint_is_converted(tuned_checkpoint: Path, tmp_path: Path, dog: Image.Image) -> None:
    convert(str(tuned_checkpoint), tmp_path / "rex", base=str(GOLDEN))
    subject = load_file(tmp_path / "rex" / "lavis-subject.safetensors")["subject"]
    assert torch.equal(subject, torch.full((1, 4, 16), 0.1))
    assert not torch.equal(sample_images(tmp_path / "rex", dog), sample_images(GOLDEN, dog))
    assert sample_images(tmp_path / "rex", dog, subject_embeds=subject).isfinite().all()


def test_convert_command_prints_the_output(
    lavis_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(lavis_folder), "--base", str(GOLDEN), "--out", str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]  # nothing is left lying about
    assert main(["convert", str(lavis_folder), "--base", str(GOLDEN), "--out", str(tmp_path / "ours")]) == 0


def test_lavis_output_in_half_precision(lavis_folder: Path, tmp_path: Path, dog: Image.Image) -> None:
    arguments = ["convert", str(GOLDEN), "--to", "lavis", "--dtype", "float16", "--out", str(tmp_path / "half")]
    assert main(arguments) == 0
    for name in lavis.FILES[:-1]:
        state = torch.load(tmp_path / "half" / name, weights_only=True)
        assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    convert(str(tmp_path / "half"), tmp_path / "back", base=str(GOLDEN))
    assert (sample_images(tmp_path / "back", dog) - sample_images(GOLDEN, dog)).abs().mean() < 0.01


def test_clip_tokenizer_has_the_ids_of_clip() -> None:
    tokenizer = lavis.clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a dog").input_ids == [49406, 320, 1125, 539, 320, 1929, 49407]
    assert tokenizer.pad_token_id == 49407
