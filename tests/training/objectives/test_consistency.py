from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.diffusion.guidance import guided, unet_denoiser
from blip_diffusion.diffusion.sampler import sample
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import TURBO
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.objectives.consistency import Consistency, ConsistencyConfig

from .overfit import context, ids, moved_parameters, overfit, with_gradient


def method(model: BlipDiffusion, **config: Any) -> Consistency:
    return Consistency(model, noising_from(model.scheduler), ConsistencyConfig(**config))


def states(own: Consistency, batch: SubjectBatch) -> Tensor:
    return own.model.text_states(batch["caption"], own.model.subject_tokens(batch["reference"], batch["category"]))


def empty(own: Consistency) -> Tensor:
    return own.model.text_states([""])


def test_it_learns_a_batch(model: BlipDiffusion, batch: SubjectBatch) -> None:
    before, after = overfit(method(model, num_levels=10), batch, steps=20, lr=2e-3)
    assert after < 0.8 * before


def test_it_learns_at_any_size(model: BlipDiffusion, batch: SubjectBatch) -> None:
    larger: SubjectBatch = {**batch, "target": torch.nn.functional.interpolate(batch["target"], scale_factor=2)}
    assert method(model)(larger, context())["loss"].isfinite()


@torch.no_grad()
def test_it_is_the_function_that_the_scheduler_samples_from(model: BlipDiffusion, batch: SubjectBatch) -> None:
    """Its last step answers the consistency function itself."""
    own = method(model, steps=1)
    noised = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = model.scheduler
    scheduler.set_timesteps(1)
    (timestep,) = scheduler.timesteps
    seen = states(own, batch)
    answer = model.denoiser(seen)(noised, timestep)
    stepped = scheduler.step(answer, timestep, noised, return_dict=False)[1]
    torch.testing.assert_close(own._clean(noised, timestep.expand(6), seen), stepped, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_clean_stays(model: BlipDiffusion, batch: SubjectBatch) -> None:
    own = method(model)
    latents = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(own._clean(latents, torch.zeros(6, dtype=torch.long), states(own, batch)), latents)


@pytest.mark.parametrize("grid", [10, 50])
def test_timesteps_are_those_of_the_scheduler(model: BlipDiffusion, grid: int) -> None:
    own = method(model, num_levels=grid, steps=2)
    later, earlier = own._timesteps(2000, torch.Generator().manual_seed(0))
    model.scheduler.set_timesteps(grid)
    assert sorted(set(later.tolist())) == sorted(model.scheduler.timesteps.tolist())
    assert ((later - earlier == 1000 // grid) | ((earlier == 0) & (later == 1000 // grid - 1))).all()


@torch.no_grad()
def test_the_teacher_takes_a_step_of_ddim(model: BlipDiffusion, batch: SubjectBatch) -> None:
    scheduler = model.scheduler
    own = method(model, guidance_scale=2.0, guidance_rescale=0.0, num_levels=10)
    noised = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    seen, empty = states(own, batch), model.text_states([""]).expand(6, -1, -1)
    later, earlier = torch.full((6,), 599), torch.full((6,), 499)
    without = own.teacher(noised, later, encoder_hidden_states=empty).sample
    full = own.teacher(noised, later, encoder_hidden_states=seen).sample
    scheduler.set_timesteps(10)
    assert 599 in scheduler.timesteps and 499 in scheduler.timesteps
    wanted = scheduler.step(without + 2 * (full - without), 599, noised).prev_sample
    torch.testing.assert_close(
        own._solved(noised, later, earlier, own._teach(seen, empty)), wanted, atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_the_teachers_way_is_that_of_the_sampler(model: BlipDiffusion, batch: SubjectBatch) -> None:
    scheduler = model.scheduler
    own = method(
        model, guidance_scale=2.0, guidance_rescale=0.0, num_levels=5, solver_steps=2, trajectory_distillation=True
    )
    assert own._levels(torch.device("cpu")).tolist() == [999, 799, 599, 399, 199, 0]
    seen, none = states(own, batch), empty(own)
    noise = torch.randn(own.latent_shape(6), generator=torch.Generator().manual_seed(0))
    path = own._path(noise, own._teach(seen, none))
    denoiser = guided(unet_denoiser(own.teacher, torch.cat([none.expand(6, -1, -1), seen])), 2.0)
    reached: list[Tensor] = []
    scheduler.set_timesteps(10)
    sample(denoiser, noise, scheduler, hook=lambda index, time, now: reached.append(now) or now)  # type: ignore[func-returns-value]
    for mine, theirs in zip(path[1:-1], reached[1::2], strict=False):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
    assert len(path) == 6 and (path[-1] - reached[-1]).abs().mean() < 0.05  # which stops at timestep 0


def test_it_begins_with_noise_as_strong_as_the_model_is_asked_to(model: BlipDiffusion) -> None:
    model.inference = replace(model.inference, noise_scale=0.5)
    for lora, expected in ((False, 1.0), (True, 0.5)):  # the whole student's sampler puts noise of strength 1 back
        assert method(model, lora=lora).noise_scale == expected


def test_the_students_first_answer_nears_the_end_of_the_path(model: BlipDiffusion, batch: SubjectBatch) -> None:
    own = method(model, lora=True, rank=4, num_levels=2, steps=2, trajectory_distillation=True, huber_c=0.1)
    seen, none, noise = states(own, batch).detach(), empty(own).detach(), torch.randn(own.latent_shape(6))

    def distance() -> float:
        guess, end = own.first_answer(seen, none, noise)
        return float((guess - end).square().mean())

    before = distance()
    optimizer = torch.optim.Adam(own.parameter_groups()[0].parameters, 2e-2)
    for _ in range(15):
        optimizer.zero_grad()
        own.trajectory_losses(seen, none, noise)["loss"].backward()
        optimizer.step()
    assert distance() < 0.8 * before


def test_the_student_moves_and_the_teacher_does_not(model: BlipDiffusion, batch: SubjectBatch) -> None:
    own = method(model)
    own.train()
    assert {name.split(".")[1] for name, part in own.named_modules() if part.training and "." in name} == {"unet"}
    assert moved_parameters(own) == ids(model.unet.parameters())
    own(batch, context())["loss"].backward()
    assert all(with_gradient([model.unet.conv_in.weight, model.unet.conv_out.weight]))  # type: ignore[list-item]
    assert not any(with_gradient([*own.teacher.parameters(), *model.text_encoder.parameters()]))
    assert not any(with_gradient(model.subject_encoder.parameters()))


def test_what_it_exports_draws_in_few_steps(model: BlipDiffusion, batch: SubjectBatch, tmp_path: Path) -> None:
    own = method(model, steps=3)
    with torch.no_grad():
        assert [column.shape[0] for column in own.sample_images(batch)] == [6, 6, 6]
    own.export(tmp_path)
    pipe = BlipDiffusionPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    asked: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda module, given: asked.append(len(given[0])))
    tokens = torch.zeros(1, 4, 32)
    pipe("on the beach", subject_embeds=tokens, source_subject_category="dog", generator=torch.Generator())
    assert asked == [1, 1, 1] and isinstance(pipe.scheduler, LCMScheduler)
    assert noising_from(pipe.scheduler).prediction == own.noising.prediction
    torch.testing.assert_close(noising_from(pipe.scheduler).alphas_cumprod, own.noising.alphas_cumprod)


def with_lora(model: BlipDiffusion, **config: Any) -> Consistency:
    return method(model, lora=True, rank=2, **config)


def test_a_lora_learns_a_batch(model: BlipDiffusion, batch: SubjectBatch) -> None:
    before, after = overfit(with_lora(model, num_levels=10), batch, steps=20, lr=1e-2)
    assert after < 0.9 * before


def test_a_lora_learns_where_the_way_ends(model: BlipDiffusion, batch: SubjectBatch) -> None:
    before, after = overfit(
        with_lora(model, trajectory_distillation=True, num_levels=4, solver_steps=2), batch, steps=20, lr=1e-2
    )
    assert after < 0.9 * before


def test_of_a_lora_nothing_else_moves(model: BlipDiffusion, batch: SubjectBatch) -> None:
    own = with_lora(model)
    assert moved_parameters(own) == {id(p) for name, p in model.unet.named_parameters() if ".lora_" in name}
    layers = {
        name.partition(".lora_")[0].rpartition(".")[2] for name, _ in model.unet.named_parameters() if ".lora_" in name
    }
    assert {"to_q", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "proj_in"} <= layers
    own(batch, context())["loss"].backward()
    assert not any(with_gradient([*own.teacher.parameters(), *model.text_encoder.parameters()]))


def test_a_lora_comes_with_the_model_as_it_was(model: BlipDiffusion, batch: SubjectBatch, tmp_path: Path) -> None:
    scheduler, inference = model.scheduler, model.inference
    weights = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    own = with_lora(model, steps=3, num_levels=10)
    overfit(own, batch, steps=5, lr=1e-2)
    own.export(tmp_path)
    pipe = BlipDiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipe.scheduler) is type(scheduler) and pipe.model.inference == inference
    torch.testing.assert_close(dict(pipe.unet.state_dict()), weights)
    noised, times = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.full((6,), 599)
    with torch.no_grad():
        seen = states(own, batch)
        wanted = model.denoiser(seen)(noised, times)
        assert not torch.allclose(pipe.model.denoiser(seen)(noised, times), wanted, atol=1e-3)
        pipe.set_preset(replace(TURBO, dtype="float32"))
        assert isinstance(pipe.scheduler, DDIMScheduler) and pipe.scheduler.config.timestep_spacing == "trailing"
        torch.testing.assert_close(pipe.model.denoiser(seen)(noised, times), wanted, atol=1e-5, rtol=1e-5)


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
        method(model, num_levels=10, solver_steps=200)
    with pytest.raises(ConfigError, match="no layer 'to_kk'"):
        method(model, lora=True, layers=("to_q", "to_kk"))
    with pytest.raises(ConfigError, match="divides the 1000 timesteps"):
        method(model, num_levels=7, steps=2)
