import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from blip_diffusion.config import build, check_types, read, to_toml
from blip_diffusion.errors import ConfigError, InputError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ConfigError(f"rate must be positive, not {self.rate}.")


@dataclass
class Outer:
    name: str
    count: int = 3
    shuffle: bool = False
    mode: Literal["fast", "slow"] = "fast"
    folder: Path | None = None
    limit: float | None = 2.0
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    words: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    extra: Inner | None = None
    parts: list[Inner] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    either: int | str = 0


FULL = Outer(
    name='a "quoted" line, a \\ and é',
    count=-4,
    shuffle=True,
    mode="slow",
    folder=Path("some/where"),
    limit=None,
    sizes=[],
    words=("x", "y=1"),
    inner=Inner(1e-7, (0.0, 0.5)),
    extra=Inner(1e300),
    parts=[Inner(2.0), Inner(3.0)],
    weights={"a key.with = signs": 1.0, "plain": 0.5},
    either="word",
)


@pytest.mark.parametrize("config", [Outer("x"), FULL])
def test_written_configuration_is_read_back(config: Outer) -> None:
    assert build(Outer, tomllib.loads(to_toml(config))) == config


def test_file_contains_only_changed_values() -> None:
    assert build(Outer, {"name": "x", "inner": {"rate": 2}}) == Outer("x", inner=Inner(rate=2.0))


def test_an_integer_is_a_number_and_becomes_a_float() -> None:
    assert type(build(Outer, {"name": "x", "limit": 3}).limit) is float


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"name": "x", "cuont": 1}, "cuont is not a configuration key; did you mean count?"),
        ({"name": "x", "inner": {"rat": 1}}, "inner.rat is not a configuration key; did you mean inner.rate?"),
        ({"name": "x", "inner": {"zzz": 1}}, "inner.zzz is not a configuration key; the keys here are rate and betas."),
        ({}, "name must be set: there is no default."),
        ({"name": 3}, "name must be a string, not 3."),
        ({"name": "x", "count": 1.5}, "count must be a whole number, not 1.5."),
        ({"name": "x", "count": True}, "count must be a whole number, not True."),
        ({"name": "x", "count": 2**63}, "count must be a number below 2^63, not 9223372036854775808."),
        ({"name": "x", "limit": -(2**63)}, "limit must be a number below 2^63, not -9223372036854775808."),
        ({"name": "x", "limit": float("inf")}, "limit must be a finite number, not inf."),
        ({"name": "x", "limit": float("nan")}, "limit must be a finite number, not nan."),
        ({"name": "x", "limit": False}, "limit must be a number, not False."),
        ({"name": "x", "shuffle": 1}, "shuffle must be true or false, not 1."),
        ({"name": "x", "mode": "quick"}, 'mode must be "fast" or "slow", not \'quick\'.'),
        ({"name": "x", "sizes": 3}, "sizes must be a list, not 3."),
        ({"name": "x", "sizes": [1, "b"]}, "sizes[1] must be a whole number, not 'b'."),
        ({"name": "x", "inner": {"betas": [0.5]}}, "inner.betas must be a list of 2 values, not [0.5]."),
        ({"name": "x", "inner": 5}, "inner must be a table, not 5."),
        ({"name": "x", "inner": {"rate": -1}}, "[inner] rate must be positive, not -1.0."),
        ({"name": "x", "parts": [{}, {"rate": 0}]}, "[parts[1]] rate must be positive, not 0.0."),
        ({"name": "x", "folder": 3}, "folder must be a path, not 3."),
        ({"name": "x", "weights": {"a": "b"}}, "weights.a must be a number, not 'b'."),
    ],
)
def test_errors_are_one_sentence_with_the_key(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Outer, table)
    assert str(caught.value) == sentence


def test_errors_name_the_table() -> None:
    with pytest.raises(ConfigError, match=r"^train\.inner\.rat is .* train\.inner\.rate\?$"):
        build(Outer, {"name": "x", "inner": {"rat": 1}}, "train")


def test_overrides_are_written_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('name = "x"\n[inner]\nrate = 0.5\n')
    overrides = [
        *("inner.rate=3", "inner.rate = 0.25", "extra.rate=1e-3", "shuffle=true", "limit=none"),
        *("name=the teapot", "words=['a', 'b']", "folder=2024-01-02", "either=a=b"),
    ]
    config = build(Outer, read(path, overrides))
    assert (config.inner.rate, config.extra, config.shuffle, config.limit) == (0.25, Inner(1e-3), True, None)
    assert (config.name, config.words, config.folder) == ("the teapot", ("a", "b"), Path("2024-01-02"))
    assert config.either == "a=b"


@pytest.mark.parametrize("override", ["novalue", "=3", "a..b=3", ".a=3", "name.deeper=3", ""])
def test_a_malformed_override_is_named(tmp_path: Path, override: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text('name = "x"\n')
    with pytest.raises(ConfigError, match="override"):
        read(path, [override])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml can't be read: No such file"):
        read(tmp_path / "none.toml", [])
    (tmp_path / "broken.toml").write_text("a = = 1")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    for name in ("broken.toml", "binary.toml"):
        with pytest.raises(ConfigError, match=f"{name} is not valid TOML"):
            read(tmp_path / name, [])


def test_importing_config_is_light() -> None:
    code = "import sys, blip_diffusion.config; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: os.mkfifo(path), "is no file: name a TOML file"),
        (lambda path: path.symlink_to("/dev/zero"), "is no file: name a TOML file"),
        (lambda path: path.write_text("#" * 2**21), "has more than 1 MiB"),
        (lambda path: path.write_text("a = " + "[" * 50_000), "is not valid TOML"),
    ],
)
def test_hostile_files_are_refused_before_they_are_read(
    make: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    make(tmp_path / "x.toml")
    with pytest.raises(ConfigError, match=sentence):
        read(tmp_path / "x.toml")


@dataclass(frozen=True)
class Typed:
    steps: int | None = None
    inner: Inner | None = None

    def __post_init__(self) -> None:
        check_types(self, InputError)


def test_types_of_a_dataclass_are_checked() -> None:
    assert Typed(3, Inner()).inner == Inner()
    for wrong, message in (
        ({"steps": "3"}, "steps must be a whole number, not '3'"),
        ({"steps": True}, "steps must be a whole number, not True"),
        ({"steps": "none"}, "steps must be None, not 'none'"),
        ({"inner": 5}, "inner must be a table, not 5"),
    ):
        with pytest.raises(InputError, match=message):
            Typed(**wrong)
