"""Structure control: what moves, what is read, and that plain diffusers reads the result."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter

from blip_diffusion.checkpoint.model_folder import read_parts
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objectives.control import ControlConfig, StructureControl, control_denoiser, hint_of

from .overfit import context, ids, moved_parameters, overfit

NETWORKS = pytest.mark.parametrize("network", ["adapter", "controlnet"])


def method(model: BlipDiffusion, **config: Any) -> StructureControl:
    torch.manual_seed(0)
    return StructureControl(model, noising_from(model.scheduler), ControlConfig(**config))


@NETWORKS
def test_it_learns_a_batch_and_only_the_network_moves(model: BlipDiffusion, batch: SubjectBatch, network: str) -> None:
    own = method(model, network=network, noise_samples_per_pair=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, last = overfit(own, batch, steps=20, lr=5e-3)
    assert last < 0.9 * first
    assert moved_parameters(own) == ids(own.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert own.network.training and not model.unet.training


@NETWORKS
@torch.no_grad()
def test_at_first_it_adds_nothing(model: BlipDiffusion, batch: SubjectBatch, network: str) -> None:
    own, states = method(model, network=network), model.text_states(batch["caption"])
    latents, timesteps = torch.randn(6, 4, 4, 4), torch.full((6,), 500)
    hint = hint_of("mask", batch["target"], batch["target_alpha"])
    found = control_denoiser(model, own.network, states, hint)(latents, timesteps)
    torch.testing.assert_close(found, model.denoiser(states)(latents, timesteps))


def test_half_of_the_prompts_are_empty_while_it_trains(model: BlipDiffusion, batch: SubjectBatch) -> None:
    own = method(model, prompt_drop=0.5, subject_drop=0.4)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        whole = own.eval()._text_states(batch, rng)
        empty, bare = model.text_states([""]), model.text_states(batch["caption"])
        drawn = torch.cat([own.train()._text_states(batch, rng) for _ in range(40)])
    alike = [(drawn - given.repeat(len(drawn) // len(given), 1, 1)).abs().amax((1, 2)) < 1e-5
             for given in (empty, bare, whole)]  # fmt: skip
    shares = [float(found.float().mean()) for found in alike]
    assert shares == pytest.approx([0.5, 0.4, 0.1], abs=0.08)


def test_hints_are_edges_or_the_mask(batch: SubjectBatch) -> None:
    edges = hint_of("canny", batch["target"], batch["target_alpha"])
    assert edges.shape == batch["target_alpha"].shape and 0.01 < float(edges.mean()) < 0.6
    assert torch.equal(hint_of("mask", batch["target"], batch["target_alpha"]), batch["target_alpha"])


def test_diffusers_reads_what_is_exported(model: BlipDiffusion, batch: SubjectBatch, tmp_path: Path) -> None:
    own = method(model, hint="mask")
    with torch.no_grad():
        own.network.adapter.conv_in.weight.normal_()
    own.others = {"canny": method(model).network}
    own.export(tmp_path)
    image = batch["target_alpha"]
    plain = T2IAdapter.from_pretrained(tmp_path / "t2i_adapter" / "mask")
    assert all(torch.equal(a, b) for a, b in zip(plain(image), own.network(image), strict=True))
    adapters = read_parts(tmp_path).t2i_adapters
    assert adapters is not None and sorted(adapters) == ["canny", "mask"]
    assert all(torch.equal(a, b) for a, b in zip(adapters["mask"](image), plain(image), strict=True))
    method(model, network="controlnet").export(tmp_path / "net")
    assert isinstance(ControlNetModel.from_pretrained(tmp_path / "net" / "controlnet"), ControlNetModel)


@pytest.mark.parametrize(
    "wrong", [{"prompt_drop": 0.9, "subject_drop": 0.1}, {"res_blocks": 0}, {"timestep_shift": 0.0}]
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ControlConfig(**wrong)


def test_the_loss_is_finite_in_evaluation(model: BlipDiffusion, batch: SubjectBatch) -> None:
    assert method(model).eval()(batch, context())["loss"].isfinite()
