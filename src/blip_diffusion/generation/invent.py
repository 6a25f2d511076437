"""New subjects from a category: a diffusion prior generates their tokens (Ramesh et al. 2022, section 2.2)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from blip_diffusion.argument_checks import number, whole_number
from blip_diffusion.checkpoint.components import read_config
from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.checkpoint.model_folder import assemble, read_parts
from blip_diffusion.checkpoint.subject_file import Subject, check_category, check_name, fingerprint, thumbnail
from blip_diffusion.errors import CheckpointError, reason
from blip_diffusion.generation.limits import MAX_GUIDANCE
from blip_diffusion.images import to_pil
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.subject_prior import PRIOR, SubjectPrior
from blip_diffusion.sampling import sample_images, sample_subject_tokens

PREVIEW = "a {} on a plain white background"


@dataclass(frozen=True)
class SubjectInventor:
    """A model with its prior, which generates new subjects.

    Args:
        model: The model.
        prior: The prior of subject tokens.

    Example:
        >>> inventor = load_inventor("runs/prior/export")
        >>> write_subject(inventor("teapot", name="teapot", seed=3), Path("teapot.safetensors"))
    """

    model: BlipDiffusion
    prior: SubjectPrior

    def __call__(self, category: str, *, name: str, seed: int = 0, steps: int = 50, guidance: float = 2.0) -> Subject:
        """Generate a subject.

        Args:
            category: The subject's category, such as "teapot".
            name: The subject's name.
            seed: Each seed gives another subject.
            steps: DDIM steps of the prior.
            guidance: Guidance scale of the prior; 1 disables guidance.

        Returns:
            The subject, with a preview as its thumbnail.

        Raises:
            InputError: If the category or the name can't be used, or a number is out of range.
        """
        check_category(category)
        check_name(name)
        steps = whole_number("steps", steps, 1, self.model.scheduler.config.num_train_timesteps)
        guidance = number("guidance", guidance, 0, MAX_GUIDANCE)
        seed = whole_number("seed", seed, 0, 2**63 - 1)
        generators = [torch.Generator().manual_seed(seed)]
        tokens = sample_subject_tokens(
            self.model, self.prior, [category], generators, steps=steps, guidance=guidance
        ).cpu()
        return Subject(
            name,
            category,
            tokens,
            fingerprint(self.model.unet, self.model.text_encoder),
            thumbnail=thumbnail(to_pil(self._preview(category, tokens, seed))[0]),
            metadata={"method": "prior", "seed": seed, "steps": steps, "guidance": guidance},
        )

    def _preview(self, category: str, tokens: Tensor, seed: int) -> Tensor:
        return sample_images(self.model, self.model.text_states([PREVIEW.format(category)], tokens), [seed]).cpu()


def load_inventor(name: str) -> SubjectInventor:
    """Load a model with a prior in its folder.

    Args:
        name: A folder that the objective "prior" exported, or a hub id.

    Returns:
        The model with its prior, in float32 on the CPU.

    Raises:
        CheckpointError: If the model has no prior, or the prior doesn't fit the model.
    """
    folder = find_model(name)
    model = assemble(read_parts(folder, dtype=torch.float32), folder).eval()
    shapes = model.subject_encoder.qformer.config.queries, int(model.text_encoder.config.hidden_size)
    prior = load_prior(folder / PRIOR)
    if tuple(prior.mean.shape) != shapes:
        raise CheckpointError(
            f"{folder / PRIOR} is for {tuple(prior.mean.shape)} subject tokens; the model has {shapes}."
        )
    return SubjectInventor(model, prior)


def load_prior(folder: Path) -> SubjectPrior:
    """Load a prior. Raises `CheckpointError` if it is missing or damaged."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"There is no prior of subjects at {folder}: train one with blip-diffusion train configs/mini/prior.toml."
        )
    read_config(folder / "config.json", "the prior")  # which checks its numbers
    try:
        prior: SubjectPrior = SubjectPrior.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except Exception as error:  # diffusers raises many kinds for a damaged folder
        raise CheckpointError(f"The prior at {folder} can't be loaded ({reason(error)}).") from error
    return prior.eval()
