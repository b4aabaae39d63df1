"""A scenario as TOML that `reading` takes: what is as by default is left out."""

import json
from collections.abc import Mapping
from datetime import datetime
from enum import Enum

import msgspec

from springtide.twin.simulation.scenario import Scenario


def write_scenario(scenario: Scenario, comment: str = "") -> str:
    """The whole file; each line of the comment comes first."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    lines += _table(_fields(scenario), ())
    return "\n".join(lines) + "\n"


def _fields(value: msgspec.Struct) -> dict[str, object]:
    """The fields that are not as by default, as builtins."""
    found = {}
    for field in msgspec.structs.fields(value):
        mine = getattr(value, field.name)
        made = field.default_factory
        default = field.default if made is msgspec.NODEFAULT else made()
        if mine != default and mine is not None:
            found[field.name] = _changed(mine)
    return found


def _changed(value: object) -> object:
    """Builtins, without those fields of structs that are as by default."""
    if isinstance(value, msgspec.Struct):
        return _fields(value)
    if isinstance(value, Mapping):
        return {key: _changed(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(one) for one in value]
    return value.value if isinstance(value, Enum) else value


def _table(values: Mapping[str, object], path: tuple[str, ...]) -> list[str]:
    """The lines of a table: its own values, then those of the tables in it."""
    lines, tables = [], []
    for key, value in values.items():
        name = ".".join(map(_key, (*path, key)))
        if isinstance(value, Mapping):
            tables += ["", f"[{name}]", *_table(value, (*path, key))]
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for one in value:
                tables += ["", f"[[{name}]]", *_table(one, (*path, key))]
        else:
            lines.append(f"{_key(key)} = {_value(value)}")
    return [*lines, *tables]


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _string(key)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)


def _string(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, but for DEL, which no scenario's name or text has."""
    return json.dumps(text)
