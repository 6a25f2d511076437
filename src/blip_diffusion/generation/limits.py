"""Limits of a request. Imports nothing large, so that the command line reports mistakes at once."""

from collections.abc import Sequence

from blip_diffusion.control_characters import check_text
from blip_diffusion.errors import InputError

MAX_IMAGES, MAX_STEPS, MAX_GUIDANCE = 1000, 1000, 100
MAX_TOTAL = 10_000
"""Images of a request: prompts times images per prompt."""
MAX_LETTERS = 10_000
"""Characters of a prompt, far more than a text encoder reads."""


def check_limits(
    *, prompts: Sequence[str], num_images: int, steps: int | None, seed: int, guidance_scale: float | None
) -> None:
    """Raise `InputError` for a number of a `GenerationRequest` that is out of range, or an empty or too long prompt."""
    if not prompts or any(not prompt.strip() for prompt in prompts):
        raise InputError("The prompt is empty: describe the scene, for example on the beach.")
    if (longest := max(map(len, prompts))) > MAX_LETTERS:
        raise InputError(f"A prompt has {longest} characters: use at most {MAX_LETTERS}.")
    for prompt in prompts:
        check_text("prompt", prompt)
    check_range("--num-images", num_images, 1, MAX_IMAGES)
    check_range("--steps", steps, 1, MAX_STEPS)
    if (total := len(prompts) * num_images) > MAX_TOTAL:
        raise InputError(f"{len(prompts)} prompts with {num_images} images are {total}: use at most {MAX_TOTAL}.")
    if seed < 0 or seed + num_images > 2**63:
        images = "image" if num_images == 1 else "images"
        raise InputError(f"--seed is {seed}: with {num_images} {images}, use a number from 0 to 2^63 - {num_images}.")
    check_range("--guidance-scale", guidance_scale, 0, MAX_GUIDANCE)


def check_control_end(value: float) -> None:
    """Raise `InputError` for the end of a control that is no share of the steps."""
    if not 0 < value <= 1:
        raise InputError(f"--control-guidance-end is {value}: use a number above 0, up to 1.")


def check_letters(**texts: str) -> None:
    """Raise `InputError` for a text by its name, such as a negative prompt, that is too long or has an escape."""
    for name, text in texts.items():
        if len(text) > MAX_LETTERS:
            raise InputError(f"The {name.replace('_', ' ')} has {len(text)} characters: use at most {MAX_LETTERS}.")
        check_text(name.replace("_", " "), text)


def check_range(flag: str, value: float | None, lowest: float, highest: float) -> None:
    """Raise `InputError` for a flag's value that is out of range; `None` is the default."""
    if value is not None and not lowest <= value <= highest:
        raise InputError(f"{flag} is {value}: use a number from {lowest} to {highest}.")
