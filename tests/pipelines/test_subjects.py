"""Subjects in a pipeline: many resident, one or a mixture drawn, and nothing of the base lost."""

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
        own = dict(pipe.unet.named_parameters())
        replaced = {
            n: (p + torch.randn(p.shape, generator=rng)).detach() for n, p in own.items() if ".attn2.to_k." in n
        }
    embedding = torch.randn(1, 4, 32, generator=rng)
    base = fingerprint(pipe.unet, pipe.text_encoder)
    return Subject(name, "dog", embedding, base, lora=lora, alpha=float(rank), weights=replaced)


def drawn(pipe: BlipDiffusionPipeline, **more: object) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return pipe("on the beach", generator=generator, output_type="pt", num_inference_steps=2, **more).images  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [{}, {"rank": 2}, {"weights": True}], ids=["embedding", "lora", "weights"])
def test_a_file_is_drawn_as_its_subject(own: BlipDiffusionPipeline, tmp_path: Path, kind: dict[str, object]) -> None:
    rex = subject(own, "rex", 1, **kind)  # type: ignore[arg-type]
    plain = drawn(own, subject_embeds=rex.embedding, target_subject_category="dog")
    write_subject(rex, tmp_path / "rex.safetensors")
    own.load_subject(tmp_path / "rex.safetensors")
    assert own.subjects == ("rex",) and own.active_subjects == {"rex": 1.0}
    tuned = drawn(own)
    assert torch.equal(plain, tuned) == (not kind)
    own.set_subjects(None)
    assert torch.equal(drawn(own, subject_embeds=rex.embedding, target_subject_category="dog"), plain)
    own.set_subjects("rex")
    assert torch.equal(drawn(own), tuned)
    own.unload_subject("rex")
    assert own.subjects == () and own.active_subjects == {}
    assert torch.equal(drawn(own, subject_embeds=rex.embedding, target_subject_category="dog"), plain)
    with pytest.raises(InputError, match="no subject: give reference_image or subject_embeds, or load_subject"):
        drawn(own)


def test_many_are_resident_and_switching_is_quick(own: BlipDiffusionPipeline) -> None:
    names = [f"s{number}" for number in range(4)]
    for seed, name in enumerate(names):
        own.load_subject(subject(own, name, seed, rank=2))
    samples = []
    for name in names:
        own.set_subjects(name)
        samples.append(drawn(own))
    began = time.perf_counter()
    for _ in range(5):
        for name in names:
            own.set_subjects(name)
    assert (time.perf_counter() - began) / 20 < 0.25  # milliseconds; the rest is for a busy machine
    for name, sample in zip(reversed(names), reversed(samples), strict=True):
        own.set_subjects(name)
        assert torch.equal(drawn(own), sample)
    assert len({sample.numpy().tobytes() for sample in samples}) == 4


@pytest.mark.parametrize("kind", [{}, {"rank": 2}, {"weights": True}], ids=["embedding", "lora", "weights"])
def test_two_are_mixed(own: BlipDiffusionPipeline, kind: dict[str, object]) -> None:
    """All of one is that one; and what lies between differs from both, half of twice the same does not."""
    rex, tom = subject(own, "rex", 1, **kind), subject(own, "tom", 2, **kind)  # type: ignore[arg-type]
    for one in (rex, tom, replace(rex, name="twin")):
        own.load_subject(one)
    own.set_subjects("rex")
    alone = drawn(own)
    own.set_subjects(["rex", "tom"], [1.0, 0.0])
    torch.testing.assert_close(drawn(own), alone, atol=1e-5, rtol=1e-5)
    own.set_subjects(["rex", "twin"])
    torch.testing.assert_close(drawn(own), alone, atol=2e-3, rtol=2e-2)  # sums in another order, of large numbers
    own.set_subjects(["rex", "tom"], [0.4, 0.6])
    torch.testing.assert_close(own.subject_embeds(), 0.4 * rex.embedding + 0.6 * tom.embedding)
    assert (drawn(own) - alone).abs().max() > 1e-2


@pytest.mark.parametrize("kind", [{}, {"rank": 2}, {"weights": True}], ids=["embedding", "lora", "weights"])
def test_a_reference_comes_before_a_resident_subject(
    own: BlipDiffusionPipeline, dog: Image.Image, kind: dict[str, object]
) -> None:
    """And leaves it as it was, also where the call fails."""
    before = drawn(own, reference_image=dog, source_subject_category="dog")
    own.load_subject(subject(own, "rex", 1, **kind))  # type: ignore[arg-type]
    rex = drawn(own)
    assert torch.equal(drawn(own, reference_image=dog, source_subject_category="dog"), before)
    with pytest.raises(ZeroDivisionError):
        drawn(own, reference_image=dog, source_subject_category="dog", callback_on_step_end=lambda *_: 1 / 0)
    assert own.active_subjects == {"rex": 1.0} and torch.equal(drawn(own), rex)
    assert not torch.equal(rex, drawn(own, target_subject_category="cat"))


def test_it_is_drawn_with_a_controlnet(own: BlipDiffusionPipeline, dog: Image.Image) -> None:
    """A fresh one adds nothing yet, and so must change nothing; one that has learned does."""
    net = ControlNetModel.from_unet(own.unet).eval()
    own.load_subject(subject(own, "rex", 1, rank=2))
    plain = drawn(own)
    torch.testing.assert_close(drawn(own, image=dog, controlnet=net), plain, atol=1e-4, rtol=1e-4)
    torch.nn.init.ones_(net.controlnet_mid_block.weight)
    assert (drawn(own, image=dog, controlnet=net) - plain).abs().max() > 1e-2


def test_other_peoples_loras_stay(own: BlipDiffusionPipeline, tmp_path: Path) -> None:
    """One that is loaded by diffusers' own means keeps its weight while subjects come and go."""
    style = {f"unet.{name}": tensor for name, tensor in subject(own, "style", 9, rank=2).lora.items()}
    own.load_lora_weights(style, adapter_name="style")
    own.set_adapters(["style"], [0.3])
    rex = subject(own, "rex", 1)
    with_style = drawn(own, subject_embeds=rex.embedding, target_subject_category="dog")
    own.load_subject(rex)
    assert torch.equal(drawn(own), with_style)
    own.load_subject(subject(own, "tom", 2, rank=2))
    assert own.get_active_adapters() == ["style", "subject_tom"]
    own.set_subjects("rex")
    assert own.get_active_adapters() == ["style"]
    assert torch.equal(drawn(own), with_style)


def test_it_outlives_unload_lora_weights(own: BlipDiffusionPipeline) -> None:
    own.load_subject(subject(own, "rex", 1, rank=2))
    before = drawn(own)
    own.unload_lora_weights()
    own.set_subjects("rex")
    assert torch.equal(drawn(own), before)


def test_it_is_saved(own: BlipDiffusionPipeline, tmp_path: Path) -> None:
    rex = subject(own, "rex", 1, rank=2)
    own.load_subject(rex, name="other")
    assert own.save_subject(tmp_path / "x.safetensors") == tmp_path / "x.safetensors"
    other = own.load_subject(tmp_path / "x.safetensors")
    assert other.name == "other" and torch.equal(other.embedding, rex.embedding)
    own.set_subjects(None)
    with pytest.raises(InputError, match="0 subjects are active: name the one"):
        own.save_subject(tmp_path / "y.safetensors")


def test_a_file_for_another_base_is_refused(own: BlipDiffusionPipeline, tmp_path: Path) -> None:
    stranger = replace(subject(own, "rex", 1), base="0" * 32, metadata={"model": "some/model"})
    with pytest.raises(CheckpointError, match="'rex' was tuned for some/model, not for this model"):
        own.load_subject(stranger)
    assert own.subjects == ()


def test_what_does_not_fit_changes_nothing(own: BlipDiffusionPipeline) -> None:
    rex = subject(own, "rex", 1, rank=2, weights=True)
    name = next(iter(rex.lora))
    broken = [
        replace(rex, lora={**rex.lora, name: torch.zeros(2, 3)}),
        replace(rex, lora={n: t for n, t in rex.lora.items() if n != name}),
        replace(rex, lora={**rex.lora, "nowhere.lora_A.weight": torch.zeros(2, 3)}),
        replace(rex, weights={"nowhere": torch.zeros(3)}),
        replace(rex, embedding=torch.zeros(1, 4, 8)),
        replace(rex, embedding=torch.zeros(1, 500, 32)),
    ]
    before = {name: parameter.clone() for name, parameter in own.unet.named_parameters()}
    for one in broken:
        with pytest.raises(CheckpointError):
            own.load_subject(one)
    assert own.subjects == ()
    after = dict(own.unet.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_unknown_names_and_wrong_weights(own: BlipDiffusionPipeline) -> None:
    own.load_subject(subject(own, "rex", 1))
    with pytest.raises(InputError, match=r"no subject 'tom': load its file first \(rex\)"):
        own.set_subjects("tom")
    with pytest.raises(InputError, match="1 weights for 2 subjects"):
        own.set_subjects(["rex", "rex"], [1.0])
    assert own.active_subjects == {"rex": 1.0}


def test_a_plain_stable_diffusion_pipeline_reads_the_lora(own: BlipDiffusionPipeline, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    from blip_diffusion.checkpoint.diffusers_export import save_stable_diffusion

    save_stable_diffusion(own.model, tmp_path / "plain")
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "plain")
    rex = subject(own, "rex", 1, rank=2)
    write_subject(rex, tmp_path / "rex.safetensors")
    plain.load_lora_weights(tmp_path, weight_name="rex.safetensors")
    own.load_subject(rex)
    noised, states = torch.randn(1, 4, 4, 4), torch.randn(1, 8, 32)
    answers = [pipe.unet(noised, 7, encoder_hidden_states=states).sample for pipe in (plain, own)]
    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-5)
    own.set_subjects(None)
    assert not np.allclose(own.unet(noised, 7, encoder_hidden_states=states).sample.detach(), answers[0].detach())


# ------------------------------------------------------------------------------------------ beside other people's LoRAs


def style_of(pipe: BlipDiffusionPipeline, seed: int = 9) -> dict[str, torch.Tensor]:
    return {f"unet.{name}": tensor for name, tensor in subject(pipe, "style", seed, rank=2).lora.items()}


def gentle(lora: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """So that rounding stays rounding: attention to large numbers makes much of it."""
    return {name: 0.2 * tensor for name, tensor in lora.items()}


def test_subjects_stay_while_other_loras_come_and_go(own: BlipDiffusionPipeline) -> None:
    style = style_of(own)
    own.load_subject(subject(own, "rex", 1, rank=2))
    own.load_subject(subject(own, "tom", 2, rank=2))
    own.set_subjects(["rex", "tom"], [0.25, 0.75])
    alone = drawn(own)
    own.load_lora_weights(style, adapter_name="style")
    assert own.get_active_adapters() == ["style", "subject_rex", "subject_tom"]
    both = drawn(own)
    assert not torch.equal(both, alone)
    own.set_adapters("style", 0.5)
    assert own.get_active_adapters() == ["style", "subject_rex", "subject_tom"]
    assert not torch.equal(drawn(own), both)
    own.delete_adapters("style")
    assert torch.equal(drawn(own), alone)
    own.load_lora_weights(style, adapter_name="style")
    assert torch.equal(drawn(own), both)
    own.unload_lora_weights()
    assert own.active_subjects == {"rex": 0.25, "tom": 0.75} and torch.equal(drawn(own), alone)
    assert own.get_list_adapters() == {"unet": ["subject_rex", "subject_tom"]}


def test_no_subject_comes_where_another_lora_goes(own: BlipDiffusionPipeline, dog: Image.Image) -> None:
    plain = drawn(own, reference_image=dog, source_subject_category="dog")
    own.load_subject(subject(own, "rex", 1, rank=2))
    own.set_subjects(None)
    own.load_lora_weights(style_of(own), adapter_name="style")
    own.delete_adapters("style")
    assert own.get_active_adapters() == []
    assert torch.equal(drawn(own, reference_image=dog, source_subject_category="dog"), plain)


def test_a_lora_that_is_refused_changes_no_mixture(own: BlipDiffusionPipeline) -> None:
    own.load_lora_weights(style_of(own), adapter_name="style")
    own.load_subject(subject(own, "rex", 1, rank=2))
    before = drawn(own)
    for broken in ({"unet.conv_in.weight": torch.ones(2, 2)}, style_of(own)):
        with pytest.raises(CheckpointError):
            own.load_lora_weights(broken, adapter_name="style")
        assert own.get_active_adapters() == ["style", "subject_rex"] and torch.equal(drawn(own), before)


def test_a_subject_over_fused_loras(own: BlipDiffusionPipeline) -> None:
    tom, rex, style = subject(own, "tom", 2, weights=True), subject(own, "rex", 1, rank=2), style_of(own)
    own.load_subject(tom)
    own.load_subject(replace(rex, lora=gentle(rex.lora)))
    own.load_lora_weights(gentle(style), adapter_name="style")
    with_style = {}
    for name in ("tom", "rex"):
        own.set_subjects(name)
        with_style[name] = drawn(own)
        with pytest.raises(InputError, match=f"can't be fused while '{name}' is active: call set_subjects"):
            own.fuse_lora()
    own.set_subjects(None)
    own.fuse_lora()
    for name in with_style:
        with pytest.raises(InputError, match=f"'{name}' can't be used over fused LoRAs: call unload_lora_weights"):
            own.set_subjects(name)
    assert own.active_subjects == {}
    own.unload_lora_weights()
    for name in ("rex", "tom", "rex"):  # tom's weights replace what was fused there, and give it back
        own.set_subjects(name)
        if name == "rex":
            torch.testing.assert_close(drawn(own), with_style[name], atol=1e-3, rtol=0)


def test_one_that_is_refused_does_not_take_its_namesakes_place(own: BlipDiffusionPipeline) -> None:
    rex = subject(own, "rex", 1, rank=2)
    own.load_subject(rex)
    before = drawn(own)
    for broken in (replace(rex, weights={"nowhere": torch.zeros(3)}), replace(rex, lora={"nowhere": torch.zeros(3)})):
        with pytest.raises(CheckpointError):
            own.load_subject(broken)
    assert own.subjects == ("rex",) and own.active_subjects == {"rex": 1.0}
    assert torch.equal(drawn(own), before)


def test_subjects_are_of_the_unet_that_they_are_in(
    own: BlipDiffusionPipeline, tiny_folder: Path, dog: Image.Image
) -> None:
    other = BlipDiffusionPipeline.from_pretrained(tiny_folder).unet
    with torch.no_grad():
        other.conv_out.bias.add_(0.1)
    own.load_subject(subject(own, "rex", 1, weights=True))
    mine, rex = own.unet, drawn(own)
    own.unet = other
    before = {name: weight.clone() for name, weight in other.state_dict().items()}
    assert own.active_subjects == {} and own.subjects == ()
    with pytest.raises(InputError, match="no subject"):
        drawn(own)
    own("on the beach", dog, "dog", num_inference_steps=1)
    assert all(torch.equal(weight, before[name]) for name, weight in other.state_dict().items())
    own.unet = mine
    assert own.active_subjects == {"rex": 1.0} and torch.equal(drawn(own), rex)


def test_another_pipelines_subject_does_not_draw_along(
    own: BlipDiffusionPipeline, tiny_folder: Path, dog: Image.Image
) -> None:
    asked = {"num_inference_steps": 1, "output_type": "pt"}
    plain = own("on the beach", dog, "dog", generator=torch.Generator().manual_seed(0), **asked).images
    beside = BlipDiffusionPipeline.from_pipe(own)
    own.load_subject(subject(own, "rex", 1, rank=2))
    assert torch.equal(
        beside("on the beach", dog, "dog", generator=torch.Generator().manual_seed(0), **asked).images, plain
    )
    assert beside.active_subjects == {"rex": 1.0}


def test_a_copy_has_what_it_was_copied_with(own: BlipDiffusionPipeline) -> None:
    own.load_subject(subject(own, "rex", 1, rank=2))
    before = drawn(own)
    own.unet = copy.deepcopy(own.unet)
    assert own.active_subjects == {"rex": 1.0} and torch.equal(drawn(own), before)
    own.unload_subject("rex")
    assert own.subjects == () and not getattr(own.unet, "peft_config", {})
