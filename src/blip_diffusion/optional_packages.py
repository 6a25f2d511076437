"""Optional packages: a sentence that says which extra installs what is missing. Imports none of them."""

from importlib.util import find_spec

from blip_diffusion.errors import InputError


def require_package(module: str, extra: str, purpose: str) -> None:
    """Raise `InputError` if a package of an extra is not installed.

    Args:
        module: The name that is imported, for example "compel".
        extra: The extra of this project that installs it.
        purpose: The beginning of the sentence: "prompt_weighting".
    """
    if find_spec(module) is None:
        raise InputError(f"{purpose} needs the package {module}: pip install 'blip-diffusion[{extra}]'.")
