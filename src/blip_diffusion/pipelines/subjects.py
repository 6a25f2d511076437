"""Tuned subjects in a pipeline: load several, activate one or a mixture."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from blip_diffusion.argument_checks import choice, listed, number, one_text
from blip_diffusion.checkpoint.subject_file import Subject, read_subject, write_subject
from blip_diffusion.errors import CheckpointError, InputError, reason
from blip_diffusion.fileio import as_path
from blip_diffusion.pipelines.blending import BLEND_MODES, BlendMode, blend_tokens, shares
from blip_diffusion.pipelines.checks import check_tensor
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.locking import exclusive
from blip_diffusion.pipelines.subject_registry import check_tokens


def _weights(values: Any) -> list[float]:
    return [number("weights", value) for value in listed("weights", values, "numbers")]


class SubjectsMixin(PipelineHost):
    """Public methods for tuned subjects. As with diffusers' adapters, load first, then choose."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """Names of the loaded subjects."""
        return tuple(self.adapters.registry.subjects)

    @property
    def active_subjects(self) -> dict[str, float]:
        """Names and weights of the subjects that a call without a reference generates."""
        return dict(self.adapters.registry.mixture)

    @exclusive
    def load_subject(self, subject: str | Path | Subject, *, name: str | None = None) -> Subject:
        """Load a tuned subject and activate it.

        Args:
            subject: A subject file that `tune` or `save_subject` wrote, or a `Subject`.
            name: Load it under another name. A loaded subject of the same name is replaced.

        Returns:
            The subject, under the name that it was loaded with.

        Raises:
            CheckpointError: If the file is missing or damaged, or was tuned for another base model.
            InputError: If LoRAs are fused into the weights and the subject changes the U-Net.

        Example:
            >>> pipe.load_subject("rex.safetensors")
            >>> pipe("on the beach").images[0]
        """
        subject = subject if isinstance(subject, Subject) else read_subject(subject)
        if name is not None:
            subject = replace(subject, name=one_text("name", name))
        self.adapters.check_base(subject)
        try:
            check_tokens(subject.embedding, self.text_encoder, self.tokenizer)
        except InputError as error:
            raise CheckpointError(f"{subject.name!r} is for another model ({reason(error)}).") from error
        self.adapters.load_subject(subject)
        return subject

    @exclusive
    def set_subjects(self, names: str | Sequence[str] | None, weights: Sequence[float] | None = None) -> None:
        """Activate loaded subjects, alone or mixed. Other LoRAs stay unchanged.

        Args:
            names: One or several loaded subjects; `None` for none.
            weights: One weight per name, by default equal ones. They interpolate if they sum to 1.

        Raises:
            InputError: If a name is unknown or the numbers of names and weights differ.

        Example:
            >>> pipe.set_subjects(["rex", "tom"], [0.3, 0.7])
        """
        names = [names] if isinstance(names, str) else [] if names is None else listed("names", names, "names")
        weights = _weights(weights) if weights is not None else [1 / len(names) for _ in names]
        for name in names:
            self.adapters.registry.get(name)
        if len(weights) != len(names):
            raise InputError(f"There are {len(weights)} weights for {len(names)} subjects: give one for each.")
        self.adapters.set_mixture(dict(zip(names, weights, strict=True)))

    @contextmanager
    def without_subjects(self) -> Iterator[None]:
        """Context manager: deactivate all subjects, and on exit activate the same ones again."""
        active = self.active_subjects
        self.adapters.set_mixture({})
        try:
            yield
        finally:
            self.adapters.set_mixture(active)

    @exclusive
    def unload_subject(self, name: str) -> None:
        """Remove a loaded subject. If it was active, none is afterwards. Raises `InputError` for an unknown name."""
        self.adapters.unload_subject(name)

    @exclusive
    def save_subject(self, path: str | Path, *, name: str | None = None) -> Path:
        """Write a loaded subject to a file.

        Args:
            path: The file, usually with the suffix .safetensors.
            name: Which subject; by default the active one.

        Returns:
            The path.

        Raises:
            InputError: If no name is given and not exactly one subject is active, or the name is unknown.

        Example:
            >>> pipe.save_subject("rex.safetensors")
        """
        registry = self.adapters.registry
        if name is None:
            if len(registry.mixture) != 1:
                raise InputError(f"{len(registry.mixture)} subjects are active: name the one to save.")
            (name,) = registry.mixture
        file = as_path("path", path)
        write_subject(registry.get(name), file)
        return file

    def blend(
        self,
        subjects: Sequence[str | Tensor],
        weights: Sequence[float] | None = None,
        mode: BlendMode = "linear",
    ) -> Tensor:
        """Mix the tokens of several subjects, to pass as `subject_embeds`.

        Args:
            subjects: Subject tokens (1, Q, D) of `encode_subject`, or names of loaded subjects, of which the tokens
                alone are mixed: `set_subjects` mixes their LoRAs too.
            weights: One for each, by default equal ones. They are divided by their sum.
            mode: "linear", or "spherical": token by token along the sphere (Shoemake 1985), which keeps their lengths.

        Returns:
            Subject tokens (1, Q, D).

        Raises:
            InputError: If there is nothing to mix, numbers or shapes don't match, or weights add up to 0.

        Example:
            >>> owl, apple = pipe.encode_subject(owl_image, "owl"), pipe.encode_subject(apple_image, "apple")
            >>> mixed = pipe.blend([owl, apple], [0.6, 0.4], mode="spherical")
            >>> pipe("in the snow", target_subject_category="owl", subject_embeds=mixed).images[0]
        """
        subjects = listed("subjects", subjects, "names and subject tokens")
        tokens = [self.adapters.registry.get(one).embedding if isinstance(one, str) else one for one in subjects]
        weights = [1.0] * len(tokens) if weights is None else _weights(weights)
        if not tokens or len(weights) != len(tokens):
            raise InputError(f"There are {len(weights)} weights for {len(tokens)} subjects: give one for each.")
        choice("blend mode", mode, BLEND_MODES)
        for one in tokens:
            check_tensor("subjects", one)
            check_tokens(one, self.text_encoder, self.tokenizer)
        if any(one.shape != tokens[0].shape for one in tokens):
            raise InputError(f"The tokens are {', '.join(str(tuple(one.shape)) for one in tokens)}: mix equal shapes.")
        return blend_tokens([one.to(tokens[0]) for one in tokens], shares(weights), mode)

    def subject_embeds(self) -> Tensor | None:
        """Return the subject tokens (1, Q, D) of the active mixture; `None` without one."""
        return self.adapters.registry.embedding()
