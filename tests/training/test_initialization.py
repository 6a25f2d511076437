import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from blip_diffusion.checkpoint.components import save_heads
from blip_diffusion.checkpoint.model_folder import Parts, read_parts
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import sentences
from blip_diffusion.errors import CheckpointError
from blip_diffusion.images import normalise
from blip_diffusion.model import InferenceConfig, build_subject_encoder, build_text_encoder
from blip_diffusion.modules.heads import ReconstructionHead
from blip_diffusion.modules.image_encoder import EfficientNetTower
from blip_diffusion.modules.placed_unet import CODE_WIDTH, PlacedUNet2DConditionModel, is_placed
from blip_diffusion.training.initialization import (
    InitConfig,
    init_heads,
    init_model,
    init_reconstruction_head,
    init_vae,
    load_parts,
    noising_from,
    with_latent_channels,
    zero_snr_scheduler,
)
from blip_diffusion.training.shapes import MINI, SHAPES

CONFIG = InitConfig("tiny")


@pytest.fixture(scope="module")
def corpus(world: AssetLibrary) -> list[str]:
    return list(sentences(world))


def test_initialization_depends_on_the_seed_only(corpus: list[str], batch: SubjectBatch) -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        return init_model(Parts(), InitConfig("tiny", seed=seed), corpus, batch["reference"]).state_dict()

    torch.manual_seed(9)
    first, other = state(1), state(2)
    torch.manual_seed(10)
    again = state(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["unet.conv_in.weight"], other["unet.conv_in.weight"])


def test_new_image_encoder_is_pretrained_and_calibrated(corpus: list[str], batch: SubjectBatch) -> None:
    model = init_model(Parts(), CONFIG, corpus, batch["reference"])
    tower = model.subject_encoder.image_encoder.tower
    assert isinstance(tower, EfficientNetTower)
    features = tower(normalise(batch["reference"], model.reference.mean, model.reference.std))
    assert features[..., : -tower.places].mean(dim=(0, 1)).abs().max() < 1e-2
    fresh = EfficientNetTower()
    assert not torch.equal(fresh.network.stem.weight, tower.network.stem.weight)  # ImageNet's, not random


def test_existing_components_are_kept(tiny_folder: Path, corpus: list[str], batch: SubjectBatch) -> None:
    parts = load_parts(InitConfig("tiny", init_from=(tiny_folder,)))
    before = {name: tensor.clone() for name, tensor in parts.subject_encoder.state_dict().items()}  # type: ignore[union-attr]
    model = init_model(parts, CONFIG, corpus, batch["reference"] * 0)
    assert model.unet is parts.unet and model.vae is parts.vae and model.tokenizer is parts.tokenizer
    assert all(torch.equal(before[name], tensor) for name, tensor in model.subject_encoder.state_dict().items())


def test_first_folder_has_priority(tiny_folder: Path, tmp_path: Path) -> None:
    from shutil import copytree

    copytree(tiny_folder / "vae", tmp_path / "vae")
    parts = read_parts(tmp_path)
    parts.vae.register_to_config(scaling_factor=0.5)
    parts.vae.save_pretrained(tmp_path / "vae")
    result = load_parts(InitConfig("tiny", init_from=(tmp_path, tiny_folder)))
    assert result.vae.config.scaling_factor == 0.5 and result.unet is not None
    result = load_parts(InitConfig("tiny", init_from=(tiny_folder, tmp_path)))
    assert result.vae.config.scaling_factor != 0.5


def test_only_tiny_models_start_without_a_trained_autoencoder() -> None:
    with pytest.raises(CheckpointError, match="no trained autoencoder"):
        init_model(Parts(), InitConfig("mini"), ["a dog"], torch.zeros(1, 3, 128, 128))


def test_new_autoencoder_starts_near_the_identity(batch: SubjectBatch) -> None:
    """Its residual branches are closed: what comes out is a blurred copy in colours that are not the image's own,
    but moves with it."""
    vae = init_vae(Parts(), CONFIG).eval()
    with torch.no_grad():
        mean = vae.encode(batch["target"] * 2 - 1).latent_dist
    assert mean.std.mean() < 0.2 and mean.mean.std() > 0.01


def test_heads_are_loaded_from_a_folder(tmp_path: Path) -> None:
    shapes = SHAPES["tiny"].qformer
    saved = ReconstructionHead(shapes.width, size=16)
    save_heads({"reconstruction": saved}, tmp_path)
    heads = init_heads(shapes, 16, [tmp_path / "nowhere", tmp_path])
    assert set(heads) == {"contrastive", "matching", "language", "reconstruction"}
    assert torch.equal(heads["reconstruction"].places, saved.places)


def test_each_head_is_loaded_from_the_first_folder_with_it(tmp_path: Path) -> None:
    shapes = SHAPES["tiny"].qformer
    saved = init_heads(shapes, 16, [])
    save_heads(dict(saved.items()), tmp_path / "stage 1")
    later = ReconstructionHead(shapes.width, size=16)
    save_heads({"reconstruction": later}, tmp_path / "stage 2")
    heads = init_heads(shapes, 16, [tmp_path / "stage 2", tmp_path / "stage 1"])
    assert torch.equal(heads["reconstruction"].places, later.places)
    for name in ("contrastive", "matching", "language"):
        given, theirs = heads[name].state_dict(), saved[name].state_dict()
        assert all(torch.equal(given[key], theirs[key]) for key in theirs)


def test_reconstruction_head_of_stage_2_is_loaded(tmp_path: Path) -> None:
    shapes = SHAPES["tiny"].qformer
    saved = ReconstructionHead(shapes.width, size=16)
    save_heads({"reconstruction": saved}, tmp_path)
    head = init_reconstruction_head(shapes, 16, [tmp_path / "nowhere", tmp_path], grid=False, trained=True)
    assert isinstance(head, ReconstructionHead) and torch.equal(head.places, saved.places)


def test_a_new_qformer_gets_a_new_reconstruction_head() -> None:
    assert init_reconstruction_head(SHAPES["tiny"].qformer, 16, [], grid=False, trained=False) is not None


def test_a_trained_qformer_gets_no_new_reconstruction_head(tmp_path: Path) -> None:
    """Its gradients would change subject tokens that the U-Net uses."""
    with pytest.warns(UserWarning, match="has no reconstruction head"):
        head = init_reconstruction_head(SHAPES["tiny"].qformer, 16, [tmp_path], grid=False, trained=True)
    assert head is None


def test_noise_schedule_has_zero_terminal_snr() -> None:
    scheduler = zero_snr_scheduler()
    noising = noising_from(scheduler)
    assert noising.alphas_cumprod[-1] < 1e-6 and noising.alphas_cumprod[0] > 0.99
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 999


def test_frozen_image_encoder_is_never_random(tiny_folder: Path, corpus: list[str]) -> None:
    parts = load_parts(InitConfig("published", init_from=(tiny_folder,)))
    parts.subject_encoder = None
    with pytest.raises(
        CheckpointError, match=r"needs pretrained weights.*: name a folder with qformer/ in model.init_from"
    ):
        init_model(parts, InitConfig("published"), corpus, torch.zeros(1, 3, 32, 32))


def test_inference_settings_come_from_the_teacher(tiny_folder: Path, corpus: list[str], tmp_path: Path) -> None:
    """A configured value has priority; folders without settings are skipped."""
    table = json.loads((tiny_folder / "model_index.json").read_text())
    teacher = InferenceConfig(2, 9, 4.0, 0.5, noise_scale=0.7)
    for name, settings in (("without", {}), ("teacher", asdict(teacher))):
        (tmp_path / name).mkdir()
        others = {key: value for key, value in table.items() if key not in asdict(teacher)}
        (tmp_path / name / "model_index.json").write_text(json.dumps(others | settings))

    def inference(*folders: str, given: InferenceConfig | None = None) -> InferenceConfig:
        config = InitConfig("tiny", init_from=tuple(tmp_path / name for name in folders), inference=given)
        return init_model(load_parts(config), config, corpus, torch.zeros(1, 3, 32, 32)).inference

    assert inference("without", "teacher") == teacher
    assert inference("teacher", given=InferenceConfig()) == InferenceConfig()
    assert inference("without") == inference() == InferenceConfig(1, 15, 3.0, 0.6)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_component_shapes_match(name: str) -> None:
    shape = SHAPES[name]
    with torch.device("meta"):
        encoder = build_subject_encoder(shape)
        build_text_encoder(shape.text_encoder)
    assert encoder.image_encoder.width == shape.qformer.vision_width
    assert shape.qformer.width == shape.text_encoder.width
    if shape.unet:  # there is none for captions
        code_width = CODE_WIDTH if is_placed(shape.unet) else 0
        assert shape.text_encoder.width + code_width == shape.unet["cross_attention_dim"]
    assert shape.qformer.queries + 8 <= shape.text_encoder.positions


def test_preset_for_captions_has_no_unet() -> None:
    with pytest.raises(CheckpointError, match="mini-captions has no U-Net"):
        init_model(Parts(), InitConfig(preset="mini-captions"), ["a dog"], torch.rand(1, 3, 32, 32))


def test_mini_has_the_expected_size() -> None:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        parts = [build_subject_encoder(MINI), build_text_encoder(MINI.text_encoder)]
        parts += [PlacedUNet2DConditionModel(**MINI.unet), AutoencoderKL(**MINI.vae)]
    numbers = sum(tensor.numel() for part in parts for tensor in part.state_dict().values())
    assert 2 * numbers <= 64 * 2**20  # bytes in half precision
    assert MINI.unet["in_channels"] == MINI.vae["latent_channels"]
    assert MINI.unet["sample_size"] * 2 ** (len(MINI.vae["block_out_channels"]) - 1) == MINI.reference.size == 128


def test_unet_for_other_latents_keeps_its_inner_layers() -> None:
    unet = PlacedUNet2DConditionModel(**SHAPES["tiny-placed"].unet)
    unet.init_placed()
    changed = with_latent_channels(unet, 6)
    assert changed(torch.randn(1, 6, 4, 4), 5, torch.randn(1, 7, 32 + CODE_WIDTH)).sample.shape == (1, 6, 4, 4)
    same = {
        name
        for name, value in changed.state_dict().items()
        if value.shape == unet.state_dict()[name].shape and torch.equal(value, unet.state_dict()[name])
    }
    assert {name.split(".")[0] for name in unet.state_dict().keys() - same} <= {"conv_in", "conv_out"}
    assert with_latent_channels(unet, 4) is unet
