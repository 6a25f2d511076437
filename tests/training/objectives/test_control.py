"""The objective for structure control: trained weights, inputs, and export for diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter

from blip_diffusion.checkpoint.model_folder import read_parts
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.errors import CheckpointError, ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objectives.control import (
    GEOMETRIC,
    ControlConfig,
    Hint,
    StructureControl,
    control_denoiser,
    empty_hint,
    hint_of,
)

from .overfit import context, ids, moved_parameters, overfit

NETWORKS = pytest.mark.parametrize("network", ["adapter", "controlnet"])


def make_objective(model: BlipDiffusion, **config: Any) -> StructureControl:
    torch.manual_seed(0)
    return StructureControl(model, noising_from(model.scheduler), ControlConfig(**config))


@NETWORKS
def test_overfits_one_batch_and_trains_only_the_network(
    model: BlipDiffusion, batch: SubjectBatch, network: str
) -> None:
    objective = make_objective(model, network=network, noise_samples_per_pair=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, last = overfit(objective, batch, steps=20, lr=5e-3)
    assert last < 0.9 * first
    assert moved_parameters(objective) == ids(objective.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert objective.network.training and not model.unet.training


@NETWORKS
@torch.no_grad()
def test_new_network_changes_nothing(model: BlipDiffusion, batch: SubjectBatch, network: str) -> None:
    objective, states = make_objective(model, network=network), model.text_states(batch["caption"])
    latents, timesteps = torch.randn(6, 4, 4, 4), torch.full((6,), 500)
    hint = hint_of("mask", batch)
    result = control_denoiser(model, objective.network, states, hint)(latents, timesteps)
    torch.testing.assert_close(result, model.denoiser(states)(latents, timesteps))


def test_half_of_the_training_prompts_are_empty(model: BlipDiffusion, batch: SubjectBatch) -> None:
    objective = make_objective(model, prompt_drop=0.5, subject_drop=0.4)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        whole = objective.eval()._text_states(batch, rng)
        empty, bare = model.text_states([""]), model.text_states(batch["caption"])
        text_states = torch.cat([objective.train()._text_states(batch, rng) for _ in range(40)])
    alike = [(text_states - given.repeat(len(text_states) // len(given), 1, 1)).abs().amax((1, 2)) < 1e-5
             for given in (empty, bare, whole)]  # fmt: skip
    shares = [float(result.float().mean()) for result in alike]
    assert shares == pytest.approx([0.5, 0.4, 0.1], abs=0.08)


def test_control_images_are_edges_or_masks(batch: SubjectBatch) -> None:
    edges = hint_of("canny", batch)
    assert edges.shape == batch["target_alpha"].shape and 0.01 < float(edges.mean()) < 0.6
    assert torch.equal(hint_of("mask", batch), batch["target_alpha"])


def test_control_images_of_depth_and_normals(geometric_world: Path) -> None:
    world = AssetLibrary.load(geometric_world, geometry=True)
    pairs = PairSampler(world, SyntheticConfig(size=32, object_crop_size=16, geometry=True), batch_size=8, seed=0)(0)
    depth, normals = hint_of("depth", pairs), hint_of("normal", pairs)
    beside, alpha = pairs["target_alpha"] == 0, pairs["target_alpha"]
    assert depth.shape == (8, 1, 32, 32) and normals.shape == (8, 3, 32, 32)
    assert depth[beside].max() == 0 and depth[alpha == 1].min() > 0.3 and depth.max() > 0.9  # near is bright
    for i, shares in enumerate(((0.5, 0.5), (0.5, 0.5), (1.0, 1.0))):  # the background faces the viewer
        assert (normals[:, i : i + 1][beside].aminmax()) == shares
    x, y = torch.arange(32.0).view(1, 1, 1, 32), torch.arange(32.0).view(1, 1, 32, 1)
    red, green, blue = (normals[:, i : i + 1] * alpha for i in range(3))
    for weight, at, before in ((red, x, True), (green, y, True)):  # red at the left, green at the top
        first, second = (float((at * w).sum() / w.sum()) for w in (weight, alpha))
        assert (first < second) == before
    assert blue[alpha == 1].min() >= 0.5


@pytest.mark.parametrize("kind", ["mask", *GEOMETRIC])
def test_an_empty_hint_is_that_of_the_background(kind: Hint, geometric_world: Path) -> None:
    world = AssetLibrary.load(geometric_world, geometry=True)
    pairs = PairSampler(world, SyntheticConfig(size=32, object_crop_size=16, geometry=True), batch_size=2, seed=0)(0)
    hint, beside = hint_of(kind, pairs), pairs["target_alpha"] == 0
    empty = empty_hint(kind, hint)
    assert empty.shape == hint.shape and beside.any()
    torch.testing.assert_close(empty * beside, hint * beside)


@pytest.mark.parametrize("hint", ["depth", "normal"])
def test_depth_and_normals_need_3d_models(model: BlipDiffusion, batch: SubjectBatch, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"The hint {hint} needs pairs of 3D models: set data.synthetic.geometry"):
        make_objective(model, hint=hint)(batch, context())


@NETWORKS
@pytest.mark.parametrize("hint", ["depth", "normal"])
def test_networks_are_trained_on_depth_and_normals(
    model: BlipDiffusion, geometric_world: Path, hint: str, network: str
) -> None:
    world = AssetLibrary.load(geometric_world, geometry=True)
    pairs = PairSampler(world, SyntheticConfig(size=32, object_crop_size=16, geometry=True), batch_size=4, seed=0)(0)
    objective = make_objective(model, hint=hint, network=network)
    objective(pairs, context())["loss"].backward()
    assert any(value.grad is not None and value.grad.any() for value in objective.network.parameters())


def test_an_adapter_of_one_channel_is_refused_for_normals(model: BlipDiffusion, tmp_path: Path) -> None:
    make_objective(model, hint="mask").network.save_pretrained(tmp_path)
    make_objective(model, hint="depth", init_from=tmp_path)
    with pytest.raises(CheckpointError, match="reads hints of one channel, and normal has 3"):
        make_objective(model, hint="normal", init_from=tmp_path)


def test_export_is_loaded_by_diffusers(model: BlipDiffusion, batch: SubjectBatch, tmp_path: Path) -> None:
    objective = make_objective(model, hint="mask")
    with torch.no_grad():
        objective.network.adapter.conv_in.weight.normal_()
    objective.others = {"canny": make_objective(model).network}
    objective.export(tmp_path)
    image = batch["target_alpha"]
    plain = T2IAdapter.from_pretrained(tmp_path / "t2i_adapter" / "mask")
    assert all(torch.equal(a, b) for a, b in zip(plain(image), objective.network(image), strict=True))
    adapters = read_parts(tmp_path).t2i_adapters
    assert adapters is not None and sorted(adapters) == ["canny", "mask"]
    assert all(torch.equal(a, b) for a, b in zip(adapters["mask"](image), plain(image), strict=True))
    make_objective(model, network="controlnet").export(tmp_path / "net")
    assert isinstance(ControlNetModel.from_pretrained(tmp_path / "net" / "controlnet"), ControlNetModel)


@pytest.mark.parametrize(
    "wrong", [{"prompt_drop": 0.9, "subject_drop": 0.1}, {"res_blocks": 0}, {"timestep_shift": 0.0}]
)
def test_invalid_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ControlConfig(**wrong)


def test_a_controlnet_of_a_model_with_placed_tokens_is_refused(placed: BlipDiffusionPipeline) -> None:
    with pytest.raises(ConfigError, match='set network = "adapter"'):
        make_objective(placed.model, network="controlnet")


def test_loss_is_finite_in_eval_mode(model: BlipDiffusion, batch: SubjectBatch) -> None:
    assert make_objective(model).eval()(batch, context())["loss"].isfinite()


@pytest.mark.parametrize(
    ("network", "other", "message"),
    [
        ("adapter", {"channels": [32, 32]}, "its channels are"),
        ("adapter", {"downscale_factor": 16}, "its downscale_factor is 16"),
        ("controlnet", {"cross_attention_dim": 64}, "its cross_attention_dim is 64"),
    ],
)
def test_a_trained_network_of_another_model_is_refused(
    model: BlipDiffusion, tmp_path: Path, network: str, other: dict[str, Any], message: str
) -> None:
    fitting = make_objective(model, network=network).network
    type(fitting).from_config({**fitting.config, **other}).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"doesn't fit the model .The .* is for another .*: {message}"):
        make_objective(model, network=network, init_from=tmp_path)


@torch.no_grad()
def test_losses_by_hint_differ_only_once_the_network_uses_it(model: BlipDiffusion, batch: SubjectBatch) -> None:
    objective = make_objective(model, hint="mask", noise_samples_per_pair=2).eval()

    def losses() -> list[float]:
        compared = objective.comparison_losses(batch, context())
        assert list(compared) == ["denoising wrong hint", "denoising empty hint", "denoising no control"]
        return [float(loss) for loss in (objective(batch, context())["loss"], *compared.values())]

    assert losses() == pytest.approx([losses()[0]] * 4, rel=1e-5)
    for parameter in objective.network.parameters():
        parameter.normal_(std=0.2)
    assert len(set(losses())) == 4 and losses() == losses()
