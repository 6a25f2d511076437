"""Losses of the phases equal those of the objectives, and decrease."""

import copy
from dataclasses import replace

import pytest
import torch

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.tokenizers import tokenizer_corpus
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.qformer import place_features
from blip_diffusion.prompts import insert_position, subject_prompt
from blip_diffusion.training.initialization import init_heads, noising_from
from blip_diffusion.training.objective import Objective, StepContext
from blip_diffusion.training.objectives.representation import Representation
from blip_diffusion.training.optim import set_trainable
from blip_diffusion.training.recipe.config import RecipeConfig
from blip_diffusion.training.recipe.cuda_graph import eager_step
from blip_diffusion.training.recipe.objectives import PackedRepresentation, PackedSubject
from blip_diffusion.training.recipe.packing import Packer, Rows, packer_of, to_pixels
from blip_diffusion.training.recipe.phases import FULL, LOW, latent_columns, new_model, random_rows

from ...data.synthetic.synthetic_world import make_world

WORLD = make_world()
CONFIG = RecipeConfig(
    preset="tiny-placed", synthetic=replace(RecipeConfig().synthetic, size=32, object_crop_size=16, colours=0.0)
)
SAMPLER = PairSampler(WORLD, CONFIG.synthetic, batch_size=6, seed=0)


@pytest.fixture(scope="module")
def new() -> BlipDiffusion:
    return new_model(CONFIG, tokenizer_corpus(WORLD), SAMPLER(0)["reference"])


@pytest.fixture
def model(new: BlipDiffusion) -> BlipDiffusion:
    return copy.deepcopy(new)


def packed(model: BlipDiffusion) -> tuple[SubjectBatch, Rows]:
    packer: Packer = packer_of(model, 32, 24)
    return SAMPLER(1), packer(SAMPLER(1))


def subject(model: BlipDiffusion) -> PackedSubject:
    heads = init_heads(model.subject_encoder.qformer.config, 16, (), grid=True)
    return PackedSubject(model, noising_from(model.scheduler), heads["reconstruction"], CONFIG.subject)


def representation(model: BlipDiffusion) -> PackedRepresentation:
    heads = init_heads(model.subject_encoder.qformer.config, 16, (), grid=True)
    core = Representation(model.subject_encoder, model.qformer_tokenizer, model.reference, heads, CONFIG.representation)
    assert model.subject_finder is not None
    return PackedRepresentation(core, model.subject_finder, CONFIG.finder)


def losses_of(objective: Objective, rows: Rows, steps: int) -> list[float]:
    parameters = list(set_trainable(objective.train(), objective.parameter_groups()).values())
    context = StepContext(0, torch.Generator().manual_seed(0))
    step, optimizer = eager_step(lambda x: objective(x, context), parameters), torch.optim.Adam(parameters, 3e-3)
    losses = []
    for _ in range(steps):
        losses.append(float(step(rows)["loss"]))
        optimizer.step()
    return losses


def test_subject_phase_without_a_reconstruction_head_has_the_denoising_loss_alone(model: BlipDiffusion) -> None:
    objective = PackedSubject(model, noising_from(model.scheduler), None, CONFIG.subject)
    rows = packed(model)[1]
    rows |= latent_columns(objective, rows)
    rows["latents"] = rows[FULL]
    rows |= random_rows(rows[FULL], CONFIG.subject, objective.noising, torch.Generator().manual_seed(0))
    losses = objective(rows, StepContext(0, torch.Generator().manual_seed(0)))
    assert set(losses) == {"denoising", "loss"} and losses["loss"] == losses["denoising"]


def test_subject_phase_reduces_the_loss(model: BlipDiffusion) -> None:
    objective, (_, rows) = subject(model), packed(model)
    rows |= latent_columns(objective, rows)
    rows["latents"] = rows[FULL]
    assert rows[LOW].shape[-1] * 2 == rows[FULL].shape[-1]
    rows |= random_rows(rows[FULL], CONFIG.subject, objective.noising, torch.Generator().manual_seed(0))
    assert len(rows["noise"]) == 18
    losses = losses_of(objective, rows, 15)
    assert losses[-1] < 0.8 * losses[0]


def test_representation_phase_reduces_the_loss(model: BlipDiffusion) -> None:
    losses = losses_of(representation(model), packed(model)[1], 15)
    assert losses[-1] < 0.8 * losses[0]


@torch.no_grad()
def test_reconstruction_equals_that_of_the_objective(model: BlipDiffusion) -> None:
    objective, (batch, rows) = representation(model).eval(), packed(model)
    exact = {**batch, **{name: to_pixels(rows[name]) for name in ("reference", "object_crop")}}
    expected = objective.representation(exact, StepContext(1, torch.Generator()))  # type: ignore[arg-type]
    result = objective(rows, StepContext(1, torch.Generator()))
    torch.testing.assert_close(result["reconstruction"], expected["reconstruction"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_text_states_equal_those_of_the_model(model: BlipDiffusion) -> None:
    objective, (batch, rows) = subject(model).eval(), packed(model)
    prompts = [subject_prompt(p, c) for p, c in zip(batch["prompt"], batch["category"], strict=True)]
    tokens = model.subject_tokens(to_pixels(rows["reference"]), batch["category"])
    torch.testing.assert_close(objective.subject_tokens(rows), tokens, rtol=1e-4, atol=1e-5)
    rows["empty"], rows["bare"] = torch.arange(6) == 0, torch.arange(6) == 1
    result = objective.text_states(tokens, rows)
    whole = model.text_states(prompts, tokens, batch["frames"])
    torch.testing.assert_close(result[2:], whole[2:], rtol=1e-4, atol=1e-5)
    words = model.text_states(["", prompts[1]])
    torch.testing.assert_close(result[:2], words, rtol=1e-4, atol=1e-5)


def test_subject_tokens_start_in_a_grid_of_positions(model: BlipDiffusion) -> None:
    at, weight = insert_position(model.tokenizer), model.text_encoder.embeddings.position_embedding.weight
    places = place_features(2, 32)[0]
    correlation = torch.corrcoef(torch.stack([weight[at : at + 4].flatten().detach(), places.flatten()]))
    assert correlation[0, 1] > 0.999


def test_prompts_are_dropped_by_share(model: BlipDiffusion) -> None:
    noising, rng = noising_from(model.scheduler), torch.Generator().manual_seed(0)
    rows = random_rows(torch.zeros(4000, 1, 1, 1), CONFIG.subject, noising, rng)
    assert not (rows["empty"] & rows["bare"]).any()
    assert float(rows["empty"].float().mean()) == pytest.approx(0.08, abs=0.015)
    assert float(rows["bare"].float().mean()) == pytest.approx(0.10, abs=0.015)
