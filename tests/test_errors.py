import ast
import inspect
from pathlib import Path

import pytest

import blip_diffusion
from blip_diffusion import errors


def test_every_error_is_in_the_documented_tree() -> None:
    result = [error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, Exception)]
    assert errors.BlipDiffusionError in result and len(result) > 1
    for error in result:
        assert issubclass(error, errors.BlipDiffusionError)
        assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("kind", [errors.InputError, errors.CheckpointError, errors.ConfigError, errors.DataError])
def test_messages_quote_foreign_words_on_one_line(kind: type[errors.BlipDiffusionError]) -> None:
    foreign = "a\x1b]0;x\x07\nblip-diffusion: all is well\u202e\u2028\x9b2J\ud800"
    for message in (kind(f"There is no {foreign}."), kind(f"It is no name ({errors.reason(OSError(foreign))}).")):
        assert str(message).isprintable() and f"{message}" == str(message) and "\\x1b]0;x\\x07" in str(message)
    assert len(str(kind("n" * 10**6))) < 2010


def test_messages_of_errors_are_sentences() -> None:
    """Every message that is written down where our errors are raised begins upright or with a value, and ends."""
    names = {"InputError", "ConfigError", "CheckpointError", "DataError"}
    for path in Path(blip_diffusion.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
                last = node.args[0].values[-1] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
                if isinstance(last, ast.Constant):
                    assert str(last.value).rstrip().endswith((".", "?")), f"{path}:{node.lineno}"
