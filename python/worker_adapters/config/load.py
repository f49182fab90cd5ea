"""A configuration read: arguments go before the environment, and that goes before the file."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError, create_model

from worker_adapters.config.lines import line_of, line_of_refusal
from worker_adapters.config.model import Configuration
from worker_adapters.config.problems import ConfigError, Field, FieldError, Problem, dotted, parted

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["PREFIX", "load", "placed"]

PREFIX: Final = "WORKER_ADAPTERS__"
"""Of every variable that sets a field: ``WORKER_ADAPTERS__POOLS__CHAT__MODEL``."""

MAX_BYTES: Final = 1 << 20
"""How large a file may be."""

MAX_VERSION_DIGITS: Final = 9
"""How many digits of a variable's version are read as a number."""

_SHAPES: Final = {
    "version": str,
    "mode": str,
    "features": list[Any],
    "sampler_profiles": list[Any],
}
"""What fields are at the top that are no tables."""

_OF_SEVERAL: Final = ("missing", "value_error")
"""Errors of a table that lie in what it lacks, or in several of its fields."""

_HINTS: Final = {
    "extra_forbidden": "there is no such field; remove it, or see the schema for what there is",
    "missing": "is missing; write it",
}


def load(path: str | os.PathLike[str] | None = None, /, **changes: Any) -> Configuration:
    """Read a TOML file, overlaid by the environment, overlaid by ``changes``.

    Each is put over the other field by field. Without a path there is no file. A variable is text,
    or JSON where the field is no text; they need the extra ``[config]``. Raises ConfigError, which
    names every problem with its line; OSError where the file cannot be read.
    """
    try:
        return _loaded(path, changes)
    except ConfigError as error:
        problems = error.problems
    # What found them has the file's text in its variables, and keys that do not belong there.
    raise ConfigError(problems)


def _loaded(path: str | os.PathLike[str] | None, changes: dict[str, Any]) -> Configuration:
    text = "" if path is None else _read(Path(path))
    source = "configuration" if path is None else str(path)
    try:
        told = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_broken(source, error)]) from None
    except (ValueError, RecursionError) as error:
        line = line_of_refusal(text)
        raise ConfigError([Problem("", _too_much(error), source, line)]) from None
    merged = _over(_over(told, _environment()), changes)
    found = _validated(merged)
    if isinstance(found, Configuration):
        return found
    raise ConfigError(_problem(error, merged, changes, source, text) for error in found)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError([Problem("", f"is larger than {MAX_BYTES} bytes", str(path))])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise ConfigError([Problem("", "is not UTF-8 text; save it as such", str(path))])


def _broken(source: str, error: tomllib.TOMLDecodeError) -> Problem:
    """Return what the parser says; it names the place, and quotes no more than a character."""
    what, _, place = str(error).rpartition(" (at ")
    number = place.removeprefix("line ").partition(",")[0]
    if not number.isdecimal():
        return Problem("", f"is no TOML: {what or error}", source)
    return Problem("", f"is no TOML: {what}", source, int(number))


def _too_much(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return "has a number of too many digits"


def _validated(merged: dict[str, Any]) -> "Configuration | list[ErrorDetails]":
    """Return the configuration, or what is wrong with it."""
    try:
        return Configuration.model_validate(merged)
    except ValidationError as error:
        problems = _errors(error)
    is_changed = False
    for problem in problems:
        # What a variable says is read as JSON where it can be: "123" may be a name all the same.
        name = _variables().get(_spelt(problem["loc"]))
        if problem["type"] == "string_type" and name is not None:
            _put(merged, problem["loc"], os.environ[name])
            is_changed = True
    if not is_changed:
        return problems
    try:
        return Configuration.model_validate(merged)
    except ValidationError as error:
        return _errors(error)


def _errors(error: ValidationError) -> "list[ErrorDetails]":
    return error.errors(include_url=False, include_input=False)


def _put(merged: Any, field: Field, value: str) -> None:
    for part in field[:-1]:
        merged = merged[part]
    merged[field[-1]] = value


def _environment() -> dict[str, Any]:
    """Return what the environment says, as nested dicts. Raises ConfigError."""
    names = sorted(name for name in os.environ if name.upper().startswith(PREFIX))
    if not names:
        return {}
    fields = Configuration.model_fields
    if unknown := [name for name in names if _top(name) not in fields]:
        known = f"there is no such field; one of {', '.join(fields)}"
        raise ConfigError(Problem(_top(name), known, name) for name in unknown)
    try:
        from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError
    except ImportError:
        needed = "variables need the extra: pip install 'worker-adapters[config]'"
        raise ConfigError([Problem("", needed, names[0])]) from None
    # Nothing is said of types here: what a field takes is decided once, for all sources.
    shapes: dict[str, Any] = {name: (_SHAPES.get(name, dict[str, Any]), None) for name in fields}
    settings = create_model("Environment", __base__=BaseSettings, **shapes)
    source = EnvSettingsSource(
        settings, env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=False
    )
    try:
        told = source()
    except (SettingsError, ValueError, RecursionError):
        bad = "is no JSON; write a list or an object, or set its fields one by one"
        whole = [name for name in names if "__" not in _rest(name)]
        raise ConfigError(Problem(_top(name), bad, name) for name in whole) from None
    version = str(told.get("version", ""))
    if version.isdecimal() and len(version) <= MAX_VERSION_DIGITS:
        told["version"] = int(version)
    return told


def _rest(name: str) -> str:
    return name[len(PREFIX) :]


def _top(name: str) -> str:
    return _rest(name).partition("__")[0].lower()


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``below`` with what ``above`` says, dict by dict."""
    merged = dict(below)
    for name, value in above.items():
        known = merged.get(name)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            merged[name] = _over(known, value)
        else:
            merged[name] = value
    return merged


# Where a problem is.


def placed(problem: Problem, path: str | os.PathLike[str]) -> Problem:
    """Return a problem of a configuration's field with its place in the file it came from."""
    field = parted(problem.field)
    if (name := _variable(field)) is not None:
        return replace(problem, source=name)
    return replace(problem, source=str(path), line=line_of(_read(Path(path)), field))


def _problem(
    error: "ErrorDetails",
    merged: dict[str, Any],
    changes: dict[str, Any],
    source: str,
    text: str,
) -> Problem:
    message = error["msg"].removeprefix("Value error, ")
    location = error["loc"]
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, FieldError):
        location = (*location, *cause.field)
        message = cause.what
    field = _known(location, merged)
    if error["type"] == "missing":
        field = location
    shown = dotted(field)
    message = _HINTS.get(error["type"], message)
    if field and _known(field, changes) == field and error["type"] != "missing":
        return Problem(shown, message, "argument")
    name = _variable(field)
    if name is None and error["type"] not in _OF_SEVERAL and _is_table(merged, field):
        name = _variable_below(field)
    if name is not None:
        return Problem(shown, message, name)
    return Problem(shown, message, source, line_of(text, field))


def _known(location: Field, value: Any) -> Field:
    """Return how far a location leads; what is beyond are the ways in which a field was tried."""
    for depth, part in enumerate(location):
        match value, part:
            case dict(), str() if part in value:
                value = value[part]
            case list() | tuple(), int() if part < len(value):
                value = value[part]
            case _:
                return location[:depth]
    return location


def _variable(location: Field) -> str | None:
    """Return the variable that sets a field, or the nearest above it, where there is one."""
    by_name = _variables()
    for end in range(len(location), 0, -1):
        name = _spelt(location[:end])
        if name in by_name:
            return by_name[name]
    return None


def _is_table(value: Any, location: Field) -> bool:
    for part in location:
        value = value[part]
    return isinstance(value, Mapping)


def _variable_below(location: Field) -> str | None:
    """Return the first variable that makes a table of a field by setting something in it."""
    start = _spelt(location) + "__"
    return next((name for name in sorted(os.environ) if name.upper().startswith(start)), None)


def _variables() -> dict[str, str]:
    """Return the environment's names by what they are in upper case."""
    return {name.upper(): name for name in os.environ}


def _spelt(location: Field) -> str:
    """Return what the variable of a field is called."""
    return PREFIX + "__".join(map(str, location)).upper()
