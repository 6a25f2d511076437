"""LoRAs extracted from LAVIS' tuned checkpoints, and the reported share of the change that they preserve."""

from pathlib import Path

import pytest
import torch

from blip_diffusion.checkpoint.lora_extraction import convert_tuned, low_rank
from blip_diffusion.checkpoint.subject_file import read_subject
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.training.lora import ATTENTION


def tuned_file(folder: Path, path: Path, *, rank: int, elsewhere: float = 0.0) -> torch.Tensor:
    """What LAVIS would save after the attention has changed by matrices of a rank, and all else a little."""
    unet = BlipDiffusionPipeline.from_pretrained(folder).unet
    rng = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in unet.state_dict().items():
        change = elsewhere * torch.randn(tensor.shape, generator=rng)
        if name.removesuffix(".weight").endswith(ATTENTION):
            change = torch.randn(len(tensor), rank, generator=rng) @ torch.randn(rank, tensor.shape[1], generator=rng)
        state[f"unet.{name}"] = tensor + 0.1 * change
    subject = torch.randn(1, 4, 32, generator=rng)
    model = {**state, "ctx_embeddings_cache": subject}
    torch.save({"model": model, "optimizer": {}, "config": {}, "scaler": {}, "iters": 40}, path)
    return subject


def test_low_rank_change_is_extracted_exactly(tiny_folder: Path, tmp_path: Path) -> None:
    subject = tuned_file(tiny_folder, tmp_path / "checkpoint_40.pth", rank=2)
    kept = convert_tuned(
        tmp_path / "checkpoint_40.pth",
        str(tiny_folder),
        tmp_path / "rex.safetensors",
        name="rex",
        category="dog",
        rank=2,
    )
    assert kept == pytest.approx(1, abs=1e-4)
    rex = read_subject(tmp_path / "rex.safetensors")
    assert torch.equal(rex.embedding, subject) and rex.rank == 2
    pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.load_subject(rex)
    tuned = torch.load(tmp_path / "checkpoint_40.pth", weights_only=True)["model"]
    other = BlipDiffusionPipeline.from_pretrained(tiny_folder).unet
    other.load_state_dict({n.removeprefix("unet."): t for n, t in tuned.items() if n.startswith("unet.")})
    noised, states = torch.randn(1, 4, 4, 4), torch.randn(1, 8, 32)
    outputs = [unet(noised, 7, encoder_hidden_states=states).sample for unet in (pipe.unet, other)]
    torch.testing.assert_close(*outputs, atol=1e-3, rtol=1e-3)


def test_lost_share_of_the_change_is_reported(tiny_folder: Path, tmp_path: Path) -> None:
    tuned_file(tiny_folder, tmp_path / "tuned.pth", rank=6, elsewhere=0.5)
    shares = []
    for rank in (0, 2, 6):
        out = tmp_path / f"{rank}.safetensors"
        shares.append(
            convert_tuned(tmp_path / "tuned.pth", str(tiny_folder), out, name="rex", category="dog", rank=rank)
        )
        assert read_subject(out).rank == rank
        assert read_subject(out).metadata["kept"] == pytest.approx(shares[-1], abs=1e-4)
    assert shares[0] == 0 and 0.1 < shares[1] < shares[2] < 1


def test_unchanged_network_loses_nothing(tiny_folder: Path) -> None:
    unet = BlipDiffusionPipeline.from_pretrained(tiny_folder).unet
    assert low_rank(unet, unet, 4)[1] == 1.0


def test_errors(tiny_folder: Path, tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="is not a checkpoint of LAVIS' tuning"):
        convert_tuned(tmp_path / "other.pth", str(tiny_folder), tmp_path / "x.safetensors", name="rex", category="dog")
    good = {"name": "rex", "category": "dog", "out": tmp_path / "x.safetensors"}
    for change, sentence in [
        ({"out": tmp_path / "x"}, "must end in .safetensors, for example rex.safetensors"),
        ({"out": Path(".")}, "must end in .safetensors, for example rex.safetensors"),
        ({"out": tmp_path / "other.pth" / "x.safetensors"}, "Nothing can be written"),
        ({"name": "a b"}, "name 'a b' can't be used"),
        ({"category": " "}, "category is empty"),
        ({"rank": -1}, "--rank is -1: use a number from 0"),
        ({"rank": 10**9}, "--rank is 1000000000: use a number from 0"),
    ]:
        with pytest.raises(InputError, match=sentence):
            convert_tuned(tmp_path / "other.pth", str(tiny_folder), **{**good, **change})
