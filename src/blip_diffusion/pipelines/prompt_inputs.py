"""The texts, references and subject tokens of a call, or the prompt embeddings in place of them all."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.argument_checks import number, texts, whole_number
from blip_diffusion.errors import InputError
from blip_diffusion.pipelines.broadcast import OneOrMany, as_list, broadcast, common_length
from blip_diffusion.pipelines.checks import check_tensor
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.prompt_weighting import check_weighting, plain_text
from blip_diffusion.pipelines.subject_registry import check_tokens
from blip_diffusion.prompts import spelled_out, subject_prompt, warn_of_weighted_words

if TYPE_CHECKING:
    from blip_diffusion.pipelines.inputs import CallArguments

MAX_REPETITIONS = 1000
"""Most repetitions of a prompt."""
ORDER = "; the order is prompt, reference_image, source_subject_category, target_subject_category"


@dataclass(frozen=True)
class PromptInputs:
    """Inputs of the text encoder for N prompts.

    Args:
        sentences: N prompts with their categories, once each; empty with `prompt_embeds`.
        prompts: The sentences, repeated by `prompt_strength` and `prompt_reps`; likewise.
        negative_prompts: N negative prompts; empty with `negative_prompt_embeds`.
        references: N reference images, or lists of images of one subject each; empty if there are `subject_embeds` or
            `prompt_embeds`.
        categories: N categories of the references.
        targets: N categories after the subject tokens.
        subject_embeds: Subject tokens (1 or N, Q, D).
        prompt_embeds: Text states (N, L, D) in place of prompts and subjects.
        negative_prompt_embeds: Text states (N, L, D) in place of negative prompts.
        weighted: Whether words of prompts and negative prompts have weights.
    """

    negative_prompts: list[str]
    sentences: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    references: list[OneOrMany[Image.Image]] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    subject_embeds: Tensor | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    weighted: bool = False

    def __len__(self) -> int:
        return len(self.prompts) if self.prompt_embeds is None else len(self.prompt_embeds)


def prompt_inputs(host: PipelineHost, given: "CallArguments") -> PromptInputs:
    """Return the inputs of the text encoder, broadcast to one length.

    Raises:
        InputError: If an argument is missing or has a wrong type, or two arguments exclude each other.
    """
    if given.prompt_embeds is not None:
        return _from_embeds(host, given, given.prompt_embeds)
    if given.prompt is None:
        raise InputError("There is no prompt: describe the scene, for example on the beach, or give prompt_embeds.")
    embeds, source = _subject(host, given)
    reference: Any = given.reference_image
    references = as_list(reference) if reference is not None else []
    negative, empty = _negative(given), given.negative_prompt_embeds
    positional = {"prompt": given.prompt, "negative_prompt": negative, "source_subject_category": source}
    positional["target_subject_category"] = given.target_subject_category
    lists = {name: texts(name, value, ORDER) for name, value in positional.items()}
    lengths = {name: len(values) for name, values in lists.items()}
    lengths["reference_image"] = len(references) if given.reference_image is not None else 1
    lengths["subject_embeds"] = 1 if embeds is None else len(embeds)
    lengths["negative_prompt_embeds"] = 1 if empty is None else len(empty)
    size = common_length(lengths)
    prompts, negatives, sources, targets = (broadcast(values, size) for values in lists.values())
    prompts, negatives, targets = (spelled_out(host.tokenizer, t) for t in (prompts, negatives, targets))
    # without a target, the subject's category is used in the prompt, where a new word may have several tokens
    source_words = spelled_out(host.tokenizer, sources)
    categories = [target or source for target, source in zip(targets, source_words, strict=True)]
    repeats = _repeats(host, given)
    plain = _without_weights(prompts, negatives) if given.prompt_weighting else prompts
    if not given.prompt_weighting:
        warn_of_weighted_words([*prompts, *negatives])
    if empty is not None:
        _check_states(host, "negative_prompt_embeds", empty, host.model.text_length)
    return PromptInputs(
        sentences=[subject_prompt(p, c) for p, c in zip(plain, categories, strict=True)],
        prompts=[subject_prompt(p, c, **repeats) for p, c in zip(prompts, categories, strict=True)],
        negative_prompts=negatives if empty is None else [],
        references=[] if embeds is not None else broadcast(references, size),
        categories=sources,
        targets=categories,
        subject_embeds=embeds,
        negative_prompt_embeds=None if empty is None else empty.expand(size, -1, -1),
        weighted=given.prompt_weighting,
    )


def _without_weights(prompts: list[str], negatives: list[str]) -> list[str]:
    """Return the prompts without their weights, after checking them."""
    check_weighting([*prompts, *negatives])
    return [plain_text(prompt) for prompt in prompts]


def _subject(host: PipelineHost, given: "CallArguments") -> tuple[Tensor | None, Any]:
    """Return subject tokens, or `None` for a call with references, and the category of the subject."""
    embeds, source = given.subject_embeds, given.source_subject_category
    registry = host.adapters.registry
    if given.reference_image is None and embeds is None and registry.mixture:
        embeds, source = registry.embedding(), source or registry.category()
    if embeds is not None:
        check_tensor("subject_embeds", embeds)
        check_tokens(embeds, host.text_encoder, host.tokenizer)
        queries = host.qformer.qformer.config.queries
        if host.model.place_width and embeds.shape[1] not in (0, queries):
            raise InputError(
                f"There are {embeds.shape[1]} subject tokens: this model places {queries} on a square grid."
            )
    elif given.reference_image is None:
        raise InputError("There is no subject: give reference_image or subject_embeds, or load_subject first.")
    return embeds, source


def _negative(given: "CallArguments") -> Any:
    """Return the negative prompt, by either of its names. An empty string is none."""
    negative = given.negative_prompt if given.negative_prompt is not None else given.neg_prompt
    if negative is not None and given.negative_prompt_embeds is not None:
        raise InputError("negative_prompt and negative_prompt_embeds exclude each other: give one of them.")
    return "" if negative is None else negative


def _repeats(host: PipelineHost, given: "CallArguments") -> dict[str, Any]:
    value = host.config["prompt_reps"] if given.prompt_reps is None else given.prompt_reps
    repetitions = whole_number("prompt_reps", value, 0, MAX_REPETITIONS)
    return {
        "strength": number("prompt_strength", given.prompt_strength, 0, MAX_REPETITIONS),
        "repetitions": repetitions,
    }


def _from_embeds(host: PipelineHost, given: "CallArguments", embeds: Tensor) -> PromptInputs:
    """Return the inputs of a call with `prompt_embeds`, which hold the prompt and its subject."""
    empty = given.negative_prompt_embeds
    for name in ("prompt", "reference_image", "subject_embeds", "subjects", "box"):
        if getattr(given, name) is not None:
            raise InputError(f"{name} and prompt_embeds exclude each other: prompt and subject are in the embeddings.")
    _check_states(host, "prompt_embeds", embeds)
    negative = texts("negative_prompt", _negative(given))
    lengths = {"prompt_embeds": len(embeds), "negative_prompt": len(negative)}
    lengths["negative_prompt_embeds"] = 1 if empty is None else len(empty)
    size = common_length(lengths)
    if given.prompt_weighting:
        check_weighting(negative)
    if empty is not None:
        _check_states(host, "negative_prompt_embeds", empty, embeds.shape[1])
    elif embeds.shape[1] != host.model.text_length:
        raise InputError(
            f"prompt_embeds are {embeds.shape[1]} tokens long, and negative prompts {host.model.text_length}: give "
            "negative_prompt_embeds of the same length."
        )
    return PromptInputs(
        negative_prompts=[] if empty is not None else broadcast(negative, size),
        prompt_embeds=embeds.expand(size, -1, -1),
        negative_prompt_embeds=None if empty is None else empty.expand(size, -1, -1),
        weighted=given.prompt_weighting,
    )


def _check_states(host: PipelineHost, name: str, states: Any, length: int | None = None) -> None:
    """Raise `InputError` unless these are text states that the U-Net reads."""
    width = int(host.unet.config.cross_attention_dim)
    expected = (length or "tokens", width)
    fits = states.ndim == 3 and states.shape[2] == width and states.shape[1] == (length or states.shape[1])
    if not fits or not states.numel():
        raise InputError(f"{name} are {tuple(states.shape)}: this model reads (prompts, {expected[0]}, {expected[1]}).")


def on_device(states: Tensor, device: torch.device) -> Tensor:
    """Return text states of a user in float32 on the device of the networks."""
    return states.detach().to(device, torch.float32)
