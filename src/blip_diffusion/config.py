"""Configuration files: TOML on disk, a frozen dataclass next to the code that uses it, and one-sentence errors.

A file overrides the dataclass's defaults and nothing else. Nothing is inherited or registered.
"""

import json
import math
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from blip_diffusion.control_characters import first_control
from blip_diffusion.errors import BlipDiffusionError, ConfigError, quoted

T = TypeVar("T")

NONE = "none"
"""The value for `None` in files and overrides, which TOML lacks."""
LARGEST = 2**63
"""Above all whole numbers that PyTorch takes, seeds among them."""
MAX_BYTES = 2**20
"""Of a configuration."""


def read(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a TOML file, if one is given, and apply overrides of the form `a.b=value`, the last one winning."""
    table = _read(path) if path is not None else {}
    for override in overrides:
        _override(table, override)
    return table


def _read(path: Path) -> dict[str, Any]:
    try:
        _check_file(path)
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ConfigError(f"The configuration {path} is not valid TOML: it is nested too deep.") from error
    except OSError as error:
        raise ConfigError(f"The configuration {path} can't be read: {error.strerror}.") from error
    except ConfigError:
        raise
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"The configuration {path} is not valid TOML: {error}.") from error


def _check_file(path: Path) -> None:
    """Raise `ConfigError` for a device, a named pipe or a huge file, before it is read."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"The configuration {path} is no file: name a TOML file.")
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"The configuration {path} has more than {MAX_BYTES // 2**20} MiB: is it a TOML file?")


def build(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from a table; `where` is the table's name, for error messages."""
    known = {field.name: field for field in fields(cast(Any, cls)) if field.init}
    for key in table:
        if key not in known:
            raise ConfigError(_unknown(key, list(known), where))
    if missing := [name for name, field in known.items() if name not in table and _required(field)]:
        raise ConfigError(f"{_listed([_join(where, name) for name in missing])} must be set: there is no default.")
    hints = get_type_hints(cls)
    values = {key: _convert(hints[key], value, _join(where, key)) for key, value in table.items()}
    try:
        return cls(**values)
    except ValueError as error:  # raised by `__post_init__`
        raise ConfigError(f"[{where}] {error}" if where else str(error)) from error


def check_types(settings: Any, error: type[BlipDiffusionError] = ConfigError) -> None:
    """Raise an error unless each field of a dataclass has a value of its type; call it in `__post_init__`.

    A path that is given as text becomes a `Path`.
    """
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        value = getattr(settings, field.name)
        try:
            converted = _convert(hints[field.name], value, field.name)
        except ConfigError as wrong:
            raise error(str(wrong)) from wrong
        if converted is None and value is not None:  # the text "none"
            raise error(f"{field.name} must be None, not {value!r}.")
        _check_objects(field.name, converted, value, error)
        if isinstance(converted, Path):
            object.__setattr__(settings, field.name, converted)  # the dataclass may be frozen


def _check_objects(name: str, converted: Any, value: Any, error: type[BlipDiffusionError]) -> None:
    """Raise an error for a table in place of a dataclass: files have tables, which are converted before."""
    if is_dataclass(converted) and converted is not value:
        raise error(f"{name} must be a {type(converted).__name__}, not {quoted(value)}.")
    if isinstance(converted, list | tuple):
        for number, (one, item) in enumerate(zip(converted, value, strict=True)):
            _check_objects(f"{name}[{number}]", one, item, error)


def to_toml(config: Any) -> str:
    """Write a dataclass as TOML with every value; `build(type(config), tomllib.loads(text))` restores it.

    Values of a `dict` must not be `None`.
    """
    return "\n".join(_lines(_table(config), ())) + "\n"


# ---------------------------------------------------------------------------------------------------------- overrides


def _override(table: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *parents, last = keys = [key.strip() for key in name.split(".")]
    if not equals or not all(keys):
        raise ConfigError(f"The override {override!r} must look like section.key=value.")
    for depth, key in enumerate(parents):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"The override {override!r} can't be applied: {'.'.join(keys[: depth + 1])} is a value.")
    table[last] = _parse(text.strip())


def _parse(text: str) -> Any:
    """Parse a TOML value, or keep the text: `--set name=teapot` needs no quotes."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    plain = parsed.keys() == {"value"} and isinstance(parsed["value"], bool | int | float | str | list | dict)
    return parsed["value"] if plain else text  # a date or a second line is text too


# ---------------------------------------------------------------------------------------------------------- reading


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Convert a value to the type of a hint, or raise an error that names the key."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is Literal:
        return _convert_literal(arguments, value, where)
    if origin in (list, tuple, Sequence):
        return _convert_sequence(origin, arguments, value, where)
    if origin in (dict, Mapping):
        _check(isinstance(value, Mapping), where, "a table", value)
        return {key: _convert(arguments[1], item, _join(where, key)) for key, item in value.items()}
    if is_dataclass(hint):
        if isinstance(value, cast(type[Any], hint)):
            return value
        _check(isinstance(value, Mapping), where, "a table", value)
        return build(cast(type[Any], hint), value, where)
    return _convert_scalar(hint, value, where)


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is bool:
        _check(isinstance(value, bool), where, "true or false", value)
    elif hint is int:
        _check(isinstance(value, int) and not isinstance(value, bool), where, "a whole number", value)
        _check(abs(value) < LARGEST, where, "a number below 2^63", value)
    elif hint is float:
        _check(isinstance(value, int | float) and not isinstance(value, bool), where, "a number", value)
        _check(isinstance(value, float) or abs(value) < LARGEST, where, "a number below 2^63", value)
        _check(math.isfinite(value), where, "a finite number", value)
        return float(value)
    elif hint is str:
        _check(isinstance(value, str), where, "a string", value)
        _check(not first_control(value), where, "text without control characters", value)
    elif hint is bytes:  # not in files, only in other tables
        _check(isinstance(value, bytes), where, "bytes", value)
    elif hint is Path:
        _check(isinstance(value, Path) or (isinstance(value, str) and bool(value.strip())), where, "a path", value)
        return Path(value)
    else:
        raise TypeError(f"{where} has the type {hint}, which a configuration can't hold")
    return value


def _convert_union(members: tuple[Any, ...], value: Any, where: str) -> Any:
    others = [member for member in members if member is not type(None)]
    if len(others) < len(members) and (value is None or (isinstance(value, str) and value == NONE)):
        return None
    for member in others[:-1]:
        try:
            return _convert(member, value, where)
        except ConfigError:
            continue
    return _convert(others[-1], value, where)


def _convert_literal(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    raise ConfigError(f"{where} must be {' or '.join(_value(choice) for choice in choices)}, not {quoted(value)}.")


def _convert_sequence(origin: Any, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    _check(isinstance(value, list | tuple), where, "a list", value)
    hints: Sequence[Any] = arguments
    if origin is not tuple or arguments[1:] == (...,):
        hints = [arguments[0]] * len(value)
    _check(len(value) == len(hints), where, f"a list of {len(hints)} values", value)
    items = [_convert(hint, item, f"{where}[{n}]") for n, (hint, item) in enumerate(zip(hints, value, strict=True))]
    return items if origin is list else tuple(items)


def _check(holds: bool, where: str, expected: str, value: Any) -> None:
    if not holds:
        raise ConfigError(f"{where} must be {expected}, not {quoted(value)}.")


def _unknown(key: str, known: Sequence[str], where: str) -> str:
    sentence = f"{_join(where, key)} is not a configuration key"
    if near := get_close_matches(key, known, n=1, cutoff=0.4):
        return f"{sentence}; did you mean {_join(where, near[0])}?"
    return f"{sentence}; the keys here are {_listed(known)}." if known else f"{sentence}; there are none here."


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# ---------------------------------------------------------------------------------------------------------- writing


def _table(value: Any) -> Any:
    """Convert a dataclass, with nested ones, to plain tables."""
    if is_dataclass(value):
        return {field.name: _table(getattr(value, field.name)) for field in fields(value) if field.init}
    if isinstance(value, Mapping):
        return {str(key): _table(item) for key, item in value.items()}
    return [_table(item) for item in value] if isinstance(value, list | tuple) else value


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """Return the lines of a table's values, then of the tables inside it."""
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in values.items()]
    for key, inner in table.items():
        if isinstance(inner, Mapping):
            here = (*path, key)
            lines += ["", f"[{'.'.join(_key(name) for name in here)}]", *_lines(inner, here)]
    return lines


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {_value(item)}' for key, item in value.items())}}}"
    return _string(NONE if value is None else str(value))


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
