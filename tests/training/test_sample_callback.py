import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.ema import Ema
from blip_diffusion.training.initialization import noising_from
from blip_diffusion.training.metric_logger import MetricLogger
from blip_diffusion.training.objectives.control import ControlConfig, StructureControl
from blip_diffusion.training.objectives.subject import SubjectConfig, SubjectRepresentation
from blip_diffusion.training.sample_callback import SampleCallback, sample_with_same_noise, shuffled_conditions
from blip_diffusion.training.trainer import HookContext


def test_mismatched_inputs_differ_in_one_field(batch: SubjectBatch) -> None:
    mismatched = shuffled_conditions(batch)
    assert list(mismatched) == ["wrong reference", "wrong scene"]
    reference, scene = mismatched["wrong reference"], mismatched["wrong scene"]
    assert [key for key in batch if reference[key] is not batch[key]] == ["reference"]  # type: ignore[literal-required]
    assert [key for key in batch if scene[key] is not batch[key]] == ["caption"]  # type: ignore[literal-required]
    assert torch.equal(reference["reference"][1], batch["reference"][0])
    assert scene["caption"][0] == f"a {batch['category'][0]} {batch['prompt'][1]}"


@torch.no_grad()
def test_samples_of_one_page_share_their_noise(model: BlipDiffusion) -> None:
    """Samples of one page differ only in their prompts."""
    states = model.text_states(["a dog on the beach", "a dog on the beach", "a cat"])
    images = sample_with_same_noise(model, states)
    assert images.shape == (3, 3, 32, 32) and images.min() >= 0 and images.max() <= 1
    torch.testing.assert_close(images[0], images[1], atol=1e-4, rtol=1e-4)
    assert (images[0] - images[2]).abs().max() > 1e-3
    torch.testing.assert_close(sample_with_same_noise(model, states), images)


@torch.no_grad()
def test_sample_callback_writes_a_page_and_metrics(model: BlipDiffusion, batch: SubjectBatch, tmp_path: Path) -> None:
    method = SubjectRepresentation(model, noising_from(model.scheduler), None, SubjectConfig()).eval()
    state = torch.get_rng_state()
    with MetricLogger(tmp_path, console=False) as metric_logger:
        SampleCallback(batch, [batch, batch])(HookContext(3, method, metric_logger, Ema({}, 0.0)))
    assert torch.equal(torch.get_rng_state(), state)
    with Image.open(tmp_path / "samples/page-00000003.png") as page:
        assert page.size == (3 * 34 - 2, 6 * 34 - 2)
    logged = json.loads((tmp_path / "log.jsonl").read_text())
    right, reference, scene = (
        logged[f"heldout/denoising{wrong}"] for wrong in ("", " wrong reference", " wrong scene")
    )
    assert set(logged) == {"step", "heldout/loss", *(key for key in logged if key.startswith("heldout/denoising"))}
    assert len({right, reference, scene}) == 3 and logged["heldout/loss"] == right
    assert right == pytest.approx(scene, rel=0.2)  # the same noise: only the words differ


@torch.no_grad()
def test_sample_callback_logs_losses_by_hint(model: BlipDiffusion, batch: SubjectBatch, tmp_path: Path) -> None:
    objective = StructureControl(model, noising_from(model.scheduler), ControlConfig()).eval()
    with MetricLogger(tmp_path, console=False) as metric_logger:
        SampleCallback(batch, [batch, batch])(HookContext(3, objective, metric_logger, Ema({}, 0.0)))
    logged = json.loads((tmp_path / "log.jsonl").read_text())
    untrained = [logged[f"heldout/denoising {name}"] for name in ("wrong hint", "empty hint", "no control")]
    assert untrained == pytest.approx([logged["heldout/denoising"]] * 3, rel=1e-5)
