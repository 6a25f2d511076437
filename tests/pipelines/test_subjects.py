"""Subjects in a pipeline: loading, mixing, removing, and the unchanged base model."""

import copy
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image

from blip_diffusion.checkpoint.subject_file import Subject, fingerprint, write_subject
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.training.lora import ATTENTION


def subject(pipe: BlipDiffusionPipeline, name: str, seed: int, *, rank: int = 0, weights: bool = False) -> Subject:
    rng = torch.Generator().manual_seed(seed)
    lora, replaced = {}, {}
    if rank:
        for layer, module in pipe.unet.named_modules():
            if layer.endswith(ATTENTION):
                lora[f"{layer}.lora_A.weight"] = torch.randn(rank, module.in_features, generator=rng)
                lora[f"{layer}.lora_B.weight"] = torch.randn(module.out_features, rank, generator=rng)
    if weights:
        parameters = dict(pipe.unet.named_parameters())
        replaced = {
            n: (p + torch.randn(p.shape, generator=rng)).detach() for n, p in parameters.items() if ".attn2.to_k." in n
        }
    embedding = torch.randn(1, 4, 32, generator=rng)
    base = fingerprint(pipe.unet, pipe.text_encoder)
    return Subject(name, "dog", embedding, base, lora=lora, alpha=float(rank), weights=replaced)


def generate_image(pipe: BlipDiffusionPipeline, **more: object) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return pipe("on the beach", generator=generator, output_type="pt", num_inference_steps=2, **more).images  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [{}, {"rank": 2}, {"weights": True}], ids=["embedding", "lora", "weights"])
def test_subject_file_generates_the_tuned_subject(
    fresh_pipe: BlipDiffusionPipeline, tmp_path: Path, kind: dict[str, object]
) -> None:
    rex = subject(fresh_pipe, "rex", 1, **kind)  # type: ignore[arg-type]
    plain = generate_image(fresh_pipe, subject_embeds=rex.embedding, target_subject_category="dog")
    write_subject(rex, tmp_path / "rex.safetensors")
    fresh_pipe.load_subject(tmp_path / "rex.safetensors")
    assert fresh_pipe.subjects == ("rex",) and fresh_pipe.active_subjects == {"rex": 1.0}
    tuned = generate_image(fresh_pipe)
    assert torch.equal(plain, tuned) == (not kind)
    fresh_pipe.set_subjects(None)
    assert torch.equal(generate_image(fresh_pipe, subject_embeds=rex.embedding, target_subject_category="dog"), plain)
    fresh_pipe.set_subjects("rex")
    assert torch.equal(generate_image(fresh_pipe), tuned)
    fresh_pipe.unload_subject("rex")
    assert fresh_pipe.subjects == () and fresh_pipe.active_subjects == {}
    assert torch.equal(generate_image(fresh_pipe, subject_embeds=rex.embedding, target_subject_category="dog"), plain)
    with pytest.raises(InputError, match="no subject: give reference_image or subject_embeds, or load_subject"):
        generate_image(fresh_pipe)


def test_several_subjects_stay_loaded(fresh_pipe: BlipDiffusionPipeline) -> None:
    names = [f"s{number}" for number in range(4)]
    for seed, name in enumerate(names):
        fresh_pipe.load_subject(subject(fresh_pipe, name, seed, rank=2))
    samples = []
    for name in names:
        fresh_pipe.set_subjects(name)
        samples.append(generate_image(fresh_pipe))
    began = time.perf_counter()
    for _ in range(5):
        for name in names:
            fresh_pipe.set_subjects(name)
    assert (time.perf_counter() - began) / 20 < 0.25  # milliseconds; the rest is for a busy machine
    for name, sample in zip(reversed(names), reversed(samples), strict=True):
        fresh_pipe.set_subjects(name)
        assert torch.equal(generate_image(fresh_pipe), sample)
    assert len({sample.numpy().tobytes() for sample in samples}) == 4


@pytest.mark.parametrize("kind", [{}, {"rank": 2}, {"weights": True}], ids=["embedding", "lora", "weights"])
def test_two_subjects_are_mixed_by_weight(fresh_pipe: BlipDiffusionPipeline, kind: dict[str, object]) -> None:
    """All of one is that one; and what lies between differs from both, half of twice the same does not."""
    rex, tom = subject(fresh_pipe, "rex", 1, **kind), subject(fresh_pipe, "tom", 2, **kind)  # type: ignore[arg-type]
    for one in (rex, tom, replace(rex, name="twin")):
        fresh_pipe.load_subject(one)
    fresh_pipe.set_subjects("rex")
    alone = generate_image(fresh_pipe)
    fresh_pipe.set_subjects(["rex", "tom"], [1.0, 0.0])
    torch.testing.assert_close(generate_image(fresh_pipe), alone, atol=1e-5, rtol=1e-5)
    fresh_pipe.set_subjects(["rex", "twin"])
    torch.testing.assert_close(
        generate_image(fresh_pipe), alone, atol=2e-3, rtol=2e-2
    )  # sums in another order, of large numbers
    fresh_pipe.set_subjects(["rex", "tom"], [0.4, 0.6])
    torch.testing.assert_close(fresh_pipe.subject_embeds(), 0.4 * rex.embedding + 0.6 * tom.embedding)
    assert (generate_image(fresh_pipe) - alone).abs().max() > 1e-2


@pytest.mark.parametrize("kind", [{}, {"rank": 2}, {"weights": True}], ids=["embedding", "lora", "weights"])
def test_reference_overrides_the_loaded_subject(
    fresh_pipe: BlipDiffusionPipeline, dog: Image.Image, kind: dict[str, object]
) -> None:
    """And leaves it as it was, also where the call fails."""
    before = generate_image(fresh_pipe, reference_image=dog, source_subject_category="dog")
    fresh_pipe.load_subject(subject(fresh_pipe, "rex", 1, **kind))  # type: ignore[arg-type]
    rex = generate_image(fresh_pipe)
    assert torch.equal(generate_image(fresh_pipe, reference_image=dog, source_subject_category="dog"), before)
    with pytest.raises(ZeroDivisionError):
        generate_image(
            fresh_pipe, reference_image=dog, source_subject_category="dog", callback_on_step_end=lambda *_: 1 / 0
        )
    assert fresh_pipe.active_subjects == {"rex": 1.0} and torch.equal(generate_image(fresh_pipe), rex)
    assert not torch.equal(rex, generate_image(fresh_pipe, target_subject_category="cat"))


def test_subject_works_with_a_controlnet(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    """A fresh one adds nothing yet, and so must change nothing; one that has learned does."""
    net = ControlNetModel.from_unet(fresh_pipe.unet).eval()
    fresh_pipe.load_subject(subject(fresh_pipe, "rex", 1, rank=2))
    plain = generate_image(fresh_pipe)
    torch.testing.assert_close(generate_image(fresh_pipe, image=dog, controlnet=net), plain, atol=1e-4, rtol=1e-4)
    torch.nn.init.ones_(net.controlnet_mid_block.weight)
    assert (generate_image(fresh_pipe, image=dog, controlnet=net) - plain).abs().max() > 1e-2


def test_user_loras_stay_active(fresh_pipe: BlipDiffusionPipeline) -> None:
    """One that is loaded by diffusers' own means keeps its weight while subjects come and go."""
    style = {f"unet.{name}": tensor for name, tensor in subject(fresh_pipe, "style", 9, rank=2).lora.items()}
    fresh_pipe.load_lora_weights(style, adapter_name="style")
    fresh_pipe.set_adapters(["style"], [0.3])
    rex = subject(fresh_pipe, "rex", 1)
    with_style = generate_image(fresh_pipe, subject_embeds=rex.embedding, target_subject_category="dog")
    fresh_pipe.load_subject(rex)
    assert torch.equal(generate_image(fresh_pipe), with_style)
    fresh_pipe.load_subject(subject(fresh_pipe, "tom", 2, rank=2))
    assert fresh_pipe.get_active_adapters() == ["style", "subject_tom"]
    fresh_pipe.set_subjects("rex")
    assert fresh_pipe.get_active_adapters() == ["style"]
    assert torch.equal(generate_image(fresh_pipe), with_style)


def test_subject_stays_after_unload_lora_weights(fresh_pipe: BlipDiffusionPipeline) -> None:
    fresh_pipe.load_subject(subject(fresh_pipe, "rex", 1, rank=2))
    before = generate_image(fresh_pipe)
    fresh_pipe.unload_lora_weights()
    fresh_pipe.set_subjects("rex")
    assert torch.equal(generate_image(fresh_pipe), before)


def test_loaded_subject_is_saved(fresh_pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    rex = subject(fresh_pipe, "rex", 1, rank=2)
    fresh_pipe.load_subject(rex, name="other")
    assert fresh_pipe.save_subject(tmp_path / "x.safetensors") == tmp_path / "x.safetensors"
    other = fresh_pipe.load_subject(tmp_path / "x.safetensors")
    assert other.name == "other" and torch.equal(other.embedding, rex.embedding)
    fresh_pipe.set_subjects(None)
    with pytest.raises(InputError, match="0 subjects are active: name the one"):
        fresh_pipe.save_subject(tmp_path / "y.safetensors")


def test_subject_of_another_base_model_is_refused(fresh_pipe: BlipDiffusionPipeline) -> None:
    foreign = replace(subject(fresh_pipe, "rex", 1), base="0" * 32, metadata={"model": "some/model"})
    with pytest.raises(CheckpointError, match="'rex' was tuned for some/model, not for this model"):
        fresh_pipe.load_subject(foreign)
    assert fresh_pipe.subjects == ()


def test_refused_subject_changes_nothing(fresh_pipe: BlipDiffusionPipeline) -> None:
    rex = subject(fresh_pipe, "rex", 1, rank=2, weights=True)
    name = next(iter(rex.lora))
    broken = [
        replace(rex, lora={**rex.lora, name: torch.zeros(2, 3)}),
        replace(rex, lora={n: t for n, t in rex.lora.items() if n != name}),
        replace(rex, lora={**rex.lora, "nowhere.lora_A.weight": torch.zeros(2, 3)}),
        replace(rex, weights={"nowhere": torch.zeros(3)}),
        replace(rex, embedding=torch.zeros(1, 4, 8)),
        replace(rex, embedding=torch.zeros(1, 500, 32)),
    ]
    before = {name: parameter.clone() for name, parameter in fresh_pipe.unet.named_parameters()}
    for one in broken:
        with pytest.raises(CheckpointError):
            fresh_pipe.load_subject(one)
    assert fresh_pipe.subjects == ()
    after = dict(fresh_pipe.unet.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_unknown_subjects_and_invalid_weights_are_refused(fresh_pipe: BlipDiffusionPipeline) -> None:
    fresh_pipe.load_subject(subject(fresh_pipe, "rex", 1))
    with pytest.raises(InputError, match=r"no subject 'tom': load its file first \(rex\)"):
        fresh_pipe.set_subjects("tom")
    with pytest.raises(InputError, match="1 weights for 2 subjects"):
        fresh_pipe.set_subjects(["rex", "rex"], [1.0])
    assert fresh_pipe.active_subjects == {"rex": 1.0}


def test_stable_diffusion_pipeline_loads_the_lora(fresh_pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    from blip_diffusion.checkpoint.diffusers_export import save_stable_diffusion

    save_stable_diffusion(fresh_pipe.model, tmp_path / "plain")
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "plain")
    rex = subject(fresh_pipe, "rex", 1, rank=2)
    write_subject(rex, tmp_path / "rex.safetensors")
    plain.load_lora_weights(tmp_path, weight_name="rex.safetensors")
    fresh_pipe.load_subject(rex)
    noised, states = torch.randn(1, 4, 4, 4), torch.randn(1, 8, 32)
    outputs = [pipe.unet(noised, 7, encoder_hidden_states=states).sample for pipe in (plain, fresh_pipe)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    fresh_pipe.set_subjects(None)
    assert not np.allclose(
        fresh_pipe.unet(noised, 7, encoder_hidden_states=states).sample.detach(), outputs[0].detach()
    )


def style_of(pipe: BlipDiffusionPipeline, seed: int = 9) -> dict[str, torch.Tensor]:
    return {f"unet.{name}": tensor for name, tensor in subject(pipe, "style", seed, rank=2).lora.items()}


def gentle(lora: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """So that rounding stays rounding: attention to large numbers makes much of it."""
    return {name: 0.2 * tensor for name, tensor in lora.items()}


def test_subjects_stay_active_when_loras_change(fresh_pipe: BlipDiffusionPipeline) -> None:
    style = style_of(fresh_pipe)
    fresh_pipe.load_subject(subject(fresh_pipe, "rex", 1, rank=2))
    fresh_pipe.load_subject(subject(fresh_pipe, "tom", 2, rank=2))
    fresh_pipe.set_subjects(["rex", "tom"], [0.25, 0.75])
    alone = generate_image(fresh_pipe)
    fresh_pipe.load_lora_weights(style, adapter_name="style")
    assert fresh_pipe.get_active_adapters() == ["style", "subject_rex", "subject_tom"]
    both = generate_image(fresh_pipe)
    assert not torch.equal(both, alone)
    fresh_pipe.set_adapters("style", 0.5)
    assert fresh_pipe.get_active_adapters() == ["style", "subject_rex", "subject_tom"]
    assert not torch.equal(generate_image(fresh_pipe), both)
    fresh_pipe.delete_adapters("style")
    assert torch.equal(generate_image(fresh_pipe), alone)
    fresh_pipe.load_lora_weights(style, adapter_name="style")
    assert torch.equal(generate_image(fresh_pipe), both)
    fresh_pipe.unload_lora_weights()
    assert fresh_pipe.active_subjects == {"rex": 0.25, "tom": 0.75} and torch.equal(generate_image(fresh_pipe), alone)
    assert fresh_pipe.get_list_adapters() == {"unet": ["subject_rex", "subject_tom"]}


def test_deleting_a_lora_activates_no_subject(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    plain = generate_image(fresh_pipe, reference_image=dog, source_subject_category="dog")
    fresh_pipe.load_subject(subject(fresh_pipe, "rex", 1, rank=2))
    fresh_pipe.set_subjects(None)
    fresh_pipe.load_lora_weights(style_of(fresh_pipe), adapter_name="style")
    fresh_pipe.delete_adapters("style")
    assert fresh_pipe.get_active_adapters() == []
    assert torch.equal(generate_image(fresh_pipe, reference_image=dog, source_subject_category="dog"), plain)


def test_refused_lora_keeps_the_subject_weights(fresh_pipe: BlipDiffusionPipeline) -> None:
    fresh_pipe.load_lora_weights(style_of(fresh_pipe), adapter_name="style")
    fresh_pipe.load_subject(subject(fresh_pipe, "rex", 1, rank=2))
    before = generate_image(fresh_pipe)
    for broken in ({"unet.conv_in.weight": torch.ones(2, 2)}, style_of(fresh_pipe)):
        with pytest.raises(CheckpointError):
            fresh_pipe.load_lora_weights(broken, adapter_name="style")
        assert fresh_pipe.get_active_adapters() == ["style", "subject_rex"] and torch.equal(
            generate_image(fresh_pipe), before
        )


def test_subject_with_fused_loras(fresh_pipe: BlipDiffusionPipeline) -> None:
    tom, rex, style = (
        subject(fresh_pipe, "tom", 2, weights=True),
        subject(fresh_pipe, "rex", 1, rank=2),
        style_of(fresh_pipe),
    )
    fresh_pipe.load_subject(tom)
    fresh_pipe.load_subject(replace(rex, lora=gentle(rex.lora)))
    fresh_pipe.load_lora_weights(gentle(style), adapter_name="style")
    with_style = {}
    for name in ("tom", "rex"):
        fresh_pipe.set_subjects(name)
        with_style[name] = generate_image(fresh_pipe)
        with pytest.raises(InputError, match=f"can't be fused while '{name}' is active: call set_subjects"):
            fresh_pipe.fuse_lora()
    fresh_pipe.set_subjects(None)
    fresh_pipe.fuse_lora()
    for name in with_style:
        with pytest.raises(InputError, match=f"'{name}' can't be used over fused LoRAs: call unload_lora_weights"):
            fresh_pipe.set_subjects(name)
    assert fresh_pipe.active_subjects == {}
    fresh_pipe.unload_lora_weights()
    for name in ("rex", "tom", "rex"):  # tom's weights replace what was fused there, and give it back
        fresh_pipe.set_subjects(name)
        if name == "rex":
            torch.testing.assert_close(generate_image(fresh_pipe), with_style[name], atol=1e-3, rtol=0)


def test_refused_subject_does_not_replace_one_of_the_same_name(fresh_pipe: BlipDiffusionPipeline) -> None:
    rex = subject(fresh_pipe, "rex", 1, rank=2)
    fresh_pipe.load_subject(rex)
    before = generate_image(fresh_pipe)
    for broken in (replace(rex, weights={"nowhere": torch.zeros(3)}), replace(rex, lora={"nowhere": torch.zeros(3)})):
        with pytest.raises(CheckpointError):
            fresh_pipe.load_subject(broken)
    assert fresh_pipe.subjects == ("rex",) and fresh_pipe.active_subjects == {"rex": 1.0}
    assert torch.equal(generate_image(fresh_pipe), before)


def test_subjects_belong_to_their_unet(fresh_pipe: BlipDiffusionPipeline, tiny_folder: Path, dog: Image.Image) -> None:
    other = BlipDiffusionPipeline.from_pretrained(tiny_folder).unet
    with torch.no_grad():
        other.conv_out.bias.add_(0.1)
    fresh_pipe.load_subject(subject(fresh_pipe, "rex", 1, weights=True))
    mine, rex = fresh_pipe.unet, generate_image(fresh_pipe)
    fresh_pipe.unet = other
    before = {name: weight.clone() for name, weight in other.state_dict().items()}
    assert fresh_pipe.active_subjects == {} and fresh_pipe.subjects == ()
    with pytest.raises(InputError, match="no subject"):
        generate_image(fresh_pipe)
    fresh_pipe("on the beach", dog, "dog", num_inference_steps=1)
    assert all(torch.equal(weight, before[name]) for name, weight in other.state_dict().items())
    fresh_pipe.unet = mine
    assert fresh_pipe.active_subjects == {"rex": 1.0} and torch.equal(generate_image(fresh_pipe), rex)


def test_subject_of_another_pipeline_is_inactive(fresh_pipe: BlipDiffusionPipeline, dog: Image.Image) -> None:
    options = {"num_inference_steps": 1, "output_type": "pt"}
    plain = fresh_pipe("on the beach", dog, "dog", generator=torch.Generator().manual_seed(0), **options).images
    beside = BlipDiffusionPipeline.from_pipe(fresh_pipe)
    fresh_pipe.load_subject(subject(fresh_pipe, "rex", 1, rank=2))
    assert torch.equal(
        beside("on the beach", dog, "dog", generator=torch.Generator().manual_seed(0), **options).images, plain
    )
    assert beside.active_subjects == {"rex": 1.0}


def test_deep_copy_keeps_the_subjects(fresh_pipe: BlipDiffusionPipeline) -> None:
    fresh_pipe.load_subject(subject(fresh_pipe, "rex", 1, rank=2))
    before = generate_image(fresh_pipe)
    fresh_pipe.unet = copy.deepcopy(fresh_pipe.unet)
    assert fresh_pipe.active_subjects == {"rex": 1.0} and torch.equal(generate_image(fresh_pipe), before)
    fresh_pipe.unload_subject("rex")
    assert fresh_pipe.subjects == () and not getattr(fresh_pipe.unet, "peft_config", {})
