from typing import Any, cast

import pytest
import torch
from torch import Tensor

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.heads import ReconstructionHead
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objectives.masked_denoising_loss import subject_importance
from blip_diffusion.training.objectives.subject import SubjectConfig, SubjectRepresentation

from .overfit import context, ids, moved_parameters, overfit, with_gradient


def make_objective(model: BlipDiffusion, **config: float) -> SubjectRepresentation:
    return SubjectRepresentation(
        model, noising_from(model.scheduler), ReconstructionHead(32, size=16), SubjectConfig(**config)
    )  # type: ignore[arg-type]


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_overfits_one_batch(model: BlipDiffusion, batch: SubjectBatch) -> None:
    before, after = overfit(
        make_objective(model, subject_drop=0.0, reconstruction_weight=0.5), batch, steps=25, lr=3e-3
    )
    assert after < 0.9 * before


@torch.no_grad()
def test_prediction_depends_on_the_reference(model: BlipDiffusion, batch: SubjectBatch) -> None:
    objective = make_objective(model, subject_drop=0.0)
    turned = cast(SubjectBatch, {**batch, "reference": batch["reference"].flip(0)})
    assert objective(batch, context())["loss"] != objective(turned, context())["loss"]


# --------------------------------------------------------------------------------------------------- what is left out


@pytest.mark.parametrize("size", [1, 2, 6, 16])
@pytest.mark.parametrize(("prompt_drop", "subject_drop"), [(0.0, 0.15), (0.1, 0.15), (0.0, 0.0)])
def test_drop_shares_hold_for_every_batch_size(
    model: BlipDiffusion, size: int, prompt_drop: float, subject_drop: float
) -> None:
    """Of single pairs too, which is what a large model's micro-batches are."""
    objective = make_objective(model, prompt_drop=prompt_drop, subject_drop=subject_drop)
    counts = torch.tensor([objective._drop_counts(size, rng(seed)) for seed in range(2000)]).float()
    empty, bare = (counts.mean(dim=0) / size).tolist()
    assert empty == pytest.approx(prompt_drop, abs=0.02) and bare == pytest.approx(subject_drop, abs=0.03)
    assert counts.sum(dim=1).max() <= size


@torch.no_grad()
@pytest.mark.parametrize(("empty", "bare"), [(0, 0), (1, 0), (1, 2), (0, 3), (2, 1)])
def test_dropped_rows_are_ordered(model: BlipDiffusion, batch: SubjectBatch, empty: int, bare: int) -> None:
    objective = make_objective(model, prompt_drop=empty / 6 + 1e-6, subject_drop=bare / 6 + 1e-6 if bare else 0.0)
    tokens = model.subject_tokens(batch["reference"], batch["category"])
    captions = batch["caption"]
    seed = next(seed for seed in range(100) if objective._drop_counts(6, rng(seed)) == (empty, bare))
    states = objective._text_states(batch, tokens, rng(seed))
    expected = [model.text_states([""])] * empty
    expected += [model.text_states([caption]) for caption in captions[empty : empty + bare]]
    expected += [model.text_states([captions[row]], tokens[row : row + 1]) for row in range(empty + bare, 6)]
    torch.testing.assert_close(states, torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_batch_without_subjects_is_trained(model: BlipDiffusion, batch: SubjectBatch) -> None:
    single = cast(SubjectBatch, {key: value[:1] for key, value in batch.items()})  # type: ignore[index]
    objective = make_objective(model, subject_drop=0.99)
    objective(single, context())["loss"].backward()
    assert model.subject_encoder.qformer.query_tokens.grad is not None  # zeros, at which processes can meet
    assert model.subject_encoder.qformer.query_tokens.grad.abs().max() == 0
    assert any(with_gradient(model.text_encoder.parameters())) and any(with_gradient(model.unet.parameters()))


# --------------------------------------------------------------------------------------------------------- what weighs


def test_importance_has_mean_one() -> None:
    alpha = torch.zeros(2, 1, 32, 32)
    alpha[0, :, 8:24, 8:24] = 1
    weights = subject_importance(alpha, torch.empty(2, 4, 4, 4), 3.0)
    assert weights.shape == (2, 1, 4, 4)
    torch.testing.assert_close(weights.mean(dim=(1, 2, 3)), torch.ones(2))
    assert weights[0, 0, 1, 1].item() == pytest.approx(3 * weights[0, 0, 0, 0].item())
    assert weights[1].unique().tolist() == [1]
    assert subject_importance(alpha, torch.empty(2, 4, 4, 4), 1.0).unique().tolist() == [1]


@torch.no_grad()
def test_an_error_on_the_subject_weighs_more(model: BlipDiffusion, batch: SubjectBatch) -> None:
    """Of a U-Net that errs in the left half."""

    def err_at_the_left(module: Any, args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        output[0][..., :2] += 30
        return output

    left, right = torch.zeros(2, 6, 1, 32, 32)
    left[..., :16], right[..., 16:] = 1, 1
    handle = model.unet.register_forward_hook(err_at_the_left)
    losses = [
        make_objective(model, subject_weight=9.0)(cast(SubjectBatch, {**batch, "target_alpha": alpha}), context())[
            "loss"
        ]
        for alpha in (left, right, left * 0)
    ]
    handle.remove()
    assert losses[0] / losses[2] == pytest.approx(1.8, abs=0.1) and losses[1] / losses[2] == pytest.approx(0.2, abs=0.1)


def test_noise_samples_share_one_subject_encoding(model: BlipDiffusion, batch: SubjectBatch) -> None:
    sizes: dict[str, list[int]] = {"unet": [], "subject_encoder": [], "text_encoder": []}

    def noted(name: str) -> Any:
        return lambda module, args: sizes[name].append(len(args[0]))

    handles = [getattr(model, name).register_forward_pre_hook(noted(name)) for name in sizes]
    make_objective(model, noise_samples_per_pair=3, subject_drop=0.0)(batch, context())
    for handle in handles:
        handle.remove()
    assert sizes == {"unet": [18], "subject_encoder": [6], "text_encoder": [6]}


@torch.no_grad()
def test_timestep_shift_gives_noisier_latents(model: BlipDiffusion, batch: SubjectBatch) -> None:
    seen: list[float] = []
    handle = model.unet.register_forward_pre_hook(lambda _, args: seen.append(float(args[1].float().mean())))
    make_objective(model, noise_samples_per_pair=16, timestep_shift=1.0)(batch, context())
    make_objective(model, noise_samples_per_pair=16, timestep_shift=8.0)(batch, context())
    handle.remove()
    assert seen[0] < 600 < 700 < seen[1]


def test_loss_terms(model: BlipDiffusion, batch: SubjectBatch) -> None:
    plain, reconstructed = (
        make_objective(model)(batch, context()),
        make_objective(model, reconstruction_weight=0.5)(batch, context()),
    )
    assert set(plain) == {"denoising", "loss"} and torch.equal(plain["loss"], plain["denoising"])
    assert reconstructed["loss"].item() == pytest.approx(
        (plain["loss"] + 0.5 * reconstructed["reconstruction"]).item(), rel=1e-5
    )


# ---------------------------------------------------------------------------------------------------------- what moves


def test_all_unfrozen_parameters_are_trained(model: BlipDiffusion, batch: SubjectBatch) -> None:
    objective = make_objective(
        model, reconstruction_weight=0.5, subject_drop=0.0, unet_lr_scale=0.1, text_lr_scale=0.2, qformer_lr_scale=0.3
    )
    still = ids(model.vae.parameters()) | ids(model.subject_encoder.image_encoder.tower.parameters())
    assert moved_parameters(objective) == ids(objective.parameters()) - still
    assert {group.name: group.lr_scale for group in objective.parameter_groups()} == {
        "unet": 0.1,
        "text": 0.2,
        "qformer": 0.3,
    }
    objective(batch, context())["loss"].backward()
    encoder = model.subject_encoder
    reached: list[Tensor] = [
        encoder.qformer.query_tokens, encoder.image_encoder.norm.weight, encoder.projection.down.weight,
        encoder.qformer.word_embeddings.weight, model.text_encoder.embeddings.token_embedding.weight,
        model.unet.conv_in.weight,
    ]  # fmt: skip
    assert all(with_gradient(reached))  # type: ignore[arg-type]
    assert not any(with_gradient(model.vae.parameters()))
    assert not any(with_gradient(encoder.image_encoder.tower.parameters()))


@torch.no_grad()
def test_samples_are_written(model: BlipDiffusion, batch: SubjectBatch) -> None:
    assert len(make_objective(model).sample_images(batch)) == 3
    columns = make_objective(model, reconstruction_weight=1.0).sample_images(batch)
    assert [column.shape[-1] for column in columns] == [32, 16, 32, 32]


def test_errors() -> None:
    with pytest.raises(ConfigError, match="subject_drop \\+ prompt_drop is 1"):
        SubjectConfig(subject_drop=0.5, prompt_drop=0.5)
    with pytest.raises(ConfigError, match="noise_samples_per_pair is 0"):
        SubjectConfig(noise_samples_per_pair=0)
    with pytest.raises(ConfigError, match="timestep_shift is 0"):
        SubjectConfig(timestep_shift=0.0)
