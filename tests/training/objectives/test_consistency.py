import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from blip_diffusion.checkpoint.model_folder import CONSISTENCY_LORA
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.diffusion.guidance import guided, unet_denoiser
from blip_diffusion.diffusion.sampler import sample
from blip_diffusion.errors import CheckpointError, ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import TURBO
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.lora import lora_state
from blip_diffusion.training.objectives.consistency import Consistency, ConsistencyConfig

from .overfit import context, ids, moved_parameters, overfit, with_gradient


def make_objective(model: BlipDiffusion, **config: Any) -> Consistency:
    return Consistency(model, noising_from(model.scheduler), ConsistencyConfig(**config))


def states(objective: Consistency, batch: SubjectBatch) -> Tensor:
    return objective.model.text_states(
        batch["caption"], objective.model.subject_tokens(batch["reference"], batch["category"])
    )


def empty(objective: Consistency) -> Tensor:
    return objective.model.text_states([""])


def test_overfits_one_batch(model: BlipDiffusion, batch: SubjectBatch) -> None:
    before, after = overfit(make_objective(model, num_levels=10), batch, steps=20, lr=2e-3)
    assert after < 0.8 * before


def test_overfits_one_batch_at_any_resolution(model: BlipDiffusion, batch: SubjectBatch) -> None:
    larger: SubjectBatch = {**batch, "target": torch.nn.functional.interpolate(batch["target"], scale_factor=2)}
    assert make_objective(model)(larger, context())["loss"].isfinite()


@torch.no_grad()
def test_consistency_function_equals_that_of_the_scheduler(model: BlipDiffusion, batch: SubjectBatch) -> None:
    """The last step returns the consistency function."""
    objective = make_objective(model, steps=1)
    noised = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = model.scheduler
    scheduler.set_timesteps(1)
    (timestep,) = scheduler.timesteps
    text_states = states(objective, batch)
    prediction = model.denoiser(text_states)(noised, timestep)
    stepped = scheduler.step(prediction, timestep, noised, return_dict=False)[1]
    torch.testing.assert_close(
        objective._consistency_function(noised, timestep.expand(6), text_states), stepped, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_clean_latents_are_unchanged(model: BlipDiffusion, batch: SubjectBatch) -> None:
    objective = make_objective(model)
    latents = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        objective._consistency_function(latents, torch.zeros(6, dtype=torch.long), states(objective, batch)), latents
    )


@pytest.mark.parametrize("grid", [10, 50])
def test_timesteps_equal_those_of_the_scheduler(model: BlipDiffusion, grid: int) -> None:
    objective = make_objective(model, num_levels=grid, steps=2)
    later, earlier = objective._timesteps(2000, torch.Generator().manual_seed(0))
    model.scheduler.set_timesteps(grid)
    assert sorted(set(later.tolist())) == sorted(model.scheduler.timesteps.tolist())
    assert ((later - earlier == 1000 // grid) | ((earlier == 0) & (later == 1000 // grid - 1))).all()


@torch.no_grad()
def test_teacher_step_is_a_ddim_step(model: BlipDiffusion, batch: SubjectBatch) -> None:
    scheduler = model.scheduler
    objective = make_objective(model, guidance_scale=2.0, guidance_rescale=0.0, num_levels=10)
    noised = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    text_states, empty = states(objective, batch), model.text_states([""]).expand(6, -1, -1)
    later, earlier = torch.full((6,), 599), torch.full((6,), 499)
    without = objective.teacher(noised, later, encoder_hidden_states=empty).sample
    full = objective.teacher(noised, later, encoder_hidden_states=text_states).sample
    scheduler.set_timesteps(10)
    assert 599 in scheduler.timesteps and 499 in scheduler.timesteps
    target_value = scheduler.step(without + 2 * (full - without), 599, noised).prev_sample
    torch.testing.assert_close(
        objective._solved(noised, later, earlier, objective._teach(text_states, empty)),
        target_value,
        atol=1e-4,
        rtol=1e-4,
    )


@torch.no_grad()
def test_teacher_trajectory_equals_that_of_the_sampler(model: BlipDiffusion, batch: SubjectBatch) -> None:
    scheduler = model.scheduler
    objective = make_objective(
        model, guidance_scale=2.0, guidance_rescale=0.0, num_levels=5, solver_steps=2, trajectory_distillation=True
    )
    assert objective._levels(torch.device("cpu")).tolist() == [999, 799, 599, 399, 199, 0]
    text_states, none = states(objective, batch), empty(objective)
    noise = torch.randn(objective.latent_shape(6), generator=torch.Generator().manual_seed(0))
    path = objective._path(noise, objective._teach(text_states, none))
    denoiser = guided(unet_denoiser(objective.teacher, torch.cat([none.expand(6, -1, -1), text_states])), 2.0)
    reached: list[Tensor] = []
    scheduler.set_timesteps(10)
    sample(denoiser, noise, scheduler, hook=lambda index, time, now: reached.append(now) or now)  # type: ignore[func-returns-value]
    for mine, theirs in zip(path[1:-1], reached[1::2], strict=False):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
    assert len(path) == 6 and (path[-1] - reached[-1]).abs().mean() < 0.05  # which stops at timestep 0


def test_initial_noise_uses_noise_scale(model: BlipDiffusion) -> None:
    model.inference = replace(model.inference, noise_scale=0.5)
    for lora, expected in ((False, 1.0), (True, 0.5)):  # the whole student's sampler puts noise of strength 1 back
        assert make_objective(model, lora=lora).noise_scale == expected


def test_first_student_prediction_approaches_the_trajectory_end(model: BlipDiffusion, batch: SubjectBatch) -> None:
    objective = make_objective(
        model, lora=True, rank=4, num_levels=2, steps=2, trajectory_distillation=True, huber_c=0.1
    )
    text_states, none, noise = (
        states(objective, batch).detach(),
        empty(objective).detach(),
        torch.randn(objective.latent_shape(6)),
    )

    def distance() -> float:
        guess, end = objective.first_answer(text_states, none, noise)
        return float((guess - end).square().mean())

    before = distance()
    optimizer = torch.optim.Adam(objective.parameter_groups()[0].parameters, 2e-2)
    for _ in range(15):
        optimizer.zero_grad()
        objective.trajectory_losses(text_states, none, noise)["loss"].backward()
        optimizer.step()
    assert distance() < 0.8 * before


def test_only_the_student_is_trained(model: BlipDiffusion, batch: SubjectBatch) -> None:
    objective = make_objective(model)
    objective.train()
    assert {name.split(".")[1] for name, part in objective.named_modules() if part.training and "." in name} == {"unet"}
    assert moved_parameters(objective) == ids(model.unet.parameters())
    objective(batch, context())["loss"].backward()
    assert all(with_gradient([model.unet.conv_in.weight, model.unet.conv_out.weight]))  # type: ignore[list-item]
    assert not any(with_gradient([*objective.teacher.parameters(), *model.text_encoder.parameters()]))
    assert not any(with_gradient(model.subject_encoder.parameters()))


def test_export_samples_in_few_steps(model: BlipDiffusion, batch: SubjectBatch, tmp_path: Path) -> None:
    objective = make_objective(model, steps=3)
    with torch.no_grad():
        assert [column.shape[0] for column in objective.sample_images(batch)] == [6, 6, 6]
    objective.export(tmp_path)
    pipe = BlipDiffusionPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    calls: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    tokens = torch.zeros(1, 4, 32)
    pipe("on the beach", subject_embeds=tokens, source_subject_category="dog", generator=torch.Generator())
    assert calls == [1, 1, 1] and isinstance(pipe.scheduler, LCMScheduler)
    assert noising_from(pipe.scheduler).prediction == objective.noising.prediction
    torch.testing.assert_close(noising_from(pipe.scheduler).alphas_cumprod, objective.noising.alphas_cumprod)


def with_lora(model: BlipDiffusion, **config: Any) -> Consistency:
    return make_objective(model, **{"lora": True, "rank": 2, **config})


def test_lora_overfits_one_batch(model: BlipDiffusion, batch: SubjectBatch) -> None:
    before, after = overfit(with_lora(model, num_levels=10), batch, steps=20, lr=1e-2)
    assert after < 0.9 * before


def test_lora_learns_the_trajectory_end(model: BlipDiffusion, batch: SubjectBatch) -> None:
    before, after = overfit(
        with_lora(model, trajectory_distillation=True, num_levels=4, solver_steps=2), batch, steps=20, lr=1e-2
    )
    assert after < 0.9 * before


def test_only_the_lora_is_trained(model: BlipDiffusion, batch: SubjectBatch) -> None:
    objective = with_lora(model)
    assert moved_parameters(objective) == {id(p) for name, p in model.unet.named_parameters() if ".lora_" in name}
    layers = {
        name.partition(".lora_")[0].rpartition(".")[2] for name, _ in model.unet.named_parameters() if ".lora_" in name
    }
    assert {"to_q", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "proj_in"} <= layers
    objective(batch, context())["loss"].backward()
    assert not any(with_gradient([*objective.teacher.parameters(), *model.text_encoder.parameters()]))


def test_lora_is_exported_with_the_unchanged_model(model: BlipDiffusion, batch: SubjectBatch, tmp_path: Path) -> None:
    scheduler, inference = model.scheduler, model.inference
    weights = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    objective = with_lora(model, steps=3, num_levels=10)
    overfit(objective, batch, steps=5, lr=1e-2)
    objective.export(tmp_path)
    pipe = BlipDiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipe.scheduler) is type(scheduler) and pipe.model.inference == inference
    torch.testing.assert_close(dict(pipe.unet.state_dict()), weights)
    noised, times = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.full((6,), 599)
    with torch.no_grad():
        text_states = states(objective, batch)
        target_value = model.denoiser(text_states)(noised, times)
        assert not torch.allclose(pipe.model.denoiser(text_states)(noised, times), target_value, atol=1e-3)
        pipe.set_preset(replace(TURBO, dtype="float32"))
        assert isinstance(pipe.scheduler, DDIMScheduler) and pipe.scheduler.config.timestep_spacing == "trailing"
        torch.testing.assert_close(pipe.model.denoiser(text_states)(noised, times), target_value, atol=1e-5, rtol=1e-5)


def test_a_lora_continues_from_a_file(model: BlipDiffusion, batch: SubjectBatch, tmp_path: Path) -> None:
    fresh = copy.deepcopy(model)
    first = with_lora(model, steps=3, num_levels=10)
    overfit(first, batch, steps=3, lr=1e-2)
    first.export(tmp_path)
    more = with_lora(copy.deepcopy(fresh), steps=3, num_levels=10, init_from=tmp_path / CONSISTENCY_LORA)
    torch.testing.assert_close(lora_state(more.model.unet), lora_state(first.model.unet))
    with pytest.raises(CheckpointError, match="consistency_lora"):
        with_lora(fresh, steps=3, num_levels=10, rank=3, init_from=tmp_path / CONSISTENCY_LORA)
    with pytest.raises(ConfigError, match=r"set consistency\.lora to true"):
        ConsistencyConfig(init_from=tmp_path / CONSISTENCY_LORA)


def test_errors(model: BlipDiffusion) -> None:
    with pytest.raises(ConfigError, match="steps is 60: use 1 to 50"):
        ConsistencyConfig(steps=60)
    with pytest.raises(ConfigError, match="huber_c is 0"):
        ConsistencyConfig(huber_c=0)
    with pytest.raises(ConfigError, match="rank is 0"):
        ConsistencyConfig(rank=0)
    with pytest.raises(ConfigError, match="solver_steps is 0"):
        ConsistencyConfig(solver_steps=0)
    with pytest.raises(ConfigError, match="solver_steps is 200: between two levels of the grid lie 100 timesteps"):
        make_objective(model, num_levels=10, solver_steps=200)
    with pytest.raises(ConfigError, match="can't be added to 'to_kk'"):
        make_objective(model, lora=True, layers=("to_q", "to_kk"))
    with pytest.raises(ConfigError, match="divides the 1000 timesteps"):
        make_objective(model, num_levels=7, steps=2)
