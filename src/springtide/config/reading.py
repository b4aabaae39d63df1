"""`springtide.toml` and `SPRINGTIDE_*` variables → one Config; each mistake is reported with its key and the remedy.

A variable overrides a key of a table: `SPRINGTIDE_FLEET_HEADROOM=0.5` is `headroom` in `[fleet]`.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from springtide.config.checks import cross_checks
from springtide.config.cloud import CloudSettings, LineSettings
from springtide.config.document import Config
from springtide.config.fleet import CalendarSettings, FleetSettings, ImagesSettings, ZoneSettings
from springtide.config.sales import CounterSettings, CrowdSettings, InventorySettings, RoomSettings, SaleSettings
from springtide.config.services import ServiceSettings
from springtide.errors import ConfigError

_TABLES: dict[str, type[msgspec.Struct]] = {
    "counter": CounterSettings,
    "inventory": InventorySettings,
    "room": RoomSettings,
    "fleet": FleetSettings,
    "images": ImagesSettings,
    "cloud": CloudSettings,
    "crowd": CrowdSettings,
}
_LISTS: dict[str, type[msgspec.Struct]] = {
    "zones": ZoneSettings,
    "lines": LineSettings,
    "sales": SaleSettings,
    "services": ServiceSettings,
    "calendar": CalendarSettings,
}


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Read the file and the variables. Raises ConfigError, one line for each mistake."""
    config = parse(read_toml(path, "a springtide.toml"), str(path), environ)
    return msgspec.structs.replace(config, cloud=config.cloud.beside(path.parent))


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The document in a file, unchecked; `what` it should be is for the message. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        msg = f"{path}: there is no such file; give the path of {what}"
        raise ConfigError(msg) from None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read: {error}"
        raise ConfigError(msg) from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        msg = f"{path}: not valid TOML: {error}"
        raise ConfigError(msg) from error


def load_sale(path: Path, environ: Mapping[str, str]) -> Config:
    """As `load`, for commands that sell something. Raises ConfigError also when there are no sales."""
    config = load(path, environ)
    if not config.sales:
        msg = f"{path}: sales: missing; this command needs at least one [[sales]]: `springtide up` runs services alone"
        raise ConfigError(msg)
    return config


def parse(raw: dict[str, Any], origin: str, environ: Mapping[str, str]) -> Config:
    """Check a parsed TOML document; `origin` names it in messages. Raises ConfigError, one line for each mistake."""
    raw = _with_variables(raw, environ)
    mistakes: list[str] = []
    parts: dict[str, Any] = {}
    for name, value in raw.items():
        if name in _TABLES:
            parts[name] = table(value, _TABLES[name], name, mistakes)
        elif name in _LISTS:
            parts[name] = tables(value, _LISTS[name], name, mistakes)
        else:
            mistakes.append(f"{name}: unknown{suggestion(name, [*_TABLES, *_LISTS])}")
    if "zones" not in raw:
        mistakes.append("zones: missing; a run needs at least one [[zones]]")
    if "sales" not in raw and "services" not in raw:
        mistakes.append("sales: missing; a run needs at least one [[sales]] or [[services]]")
    if not mistakes:
        config = msgspec.convert(parts, Config)
        mistakes = cross_checks(config, suggestion)
        if not mistakes:
            return config
    raise ConfigError("\n".join(f"{origin}: {mistake}" for mistake in mistakes))


def tables(value: object, kind: type[msgspec.Struct], name: str, mistakes: list[str]) -> tuple[object, ...]:
    """A list of tables, each checked as `table` does it."""
    if not isinstance(value, list):
        mistakes.append(f"{name}: must be written as [[{name}]]")
        return ()
    if not value:
        mistakes.append(f"{name}: empty; give at least one [[{name}]] or leave it out")
    return tuple(table(item, kind, f"{name}[{index}]", mistakes) for index, item in enumerate(value))


def table(value: object, kind: type[msgspec.Struct], where: str, mistakes: list[str]) -> object:
    """One table, checked key by key, so that every wrong key is named and not only the first."""
    if not isinstance(value, dict):
        mistakes.append(f"{where}: must be a table")
        return None
    known = {field.name: field for field in msgspec.structs.fields(kind)}
    found = len(mistakes)
    for key, item in value.items():
        if key not in known:
            mistakes.append(f"{where}.{key}: unknown{suggestion(key, list(known))}")
            continue
        try:
            msgspec.convert(item, known[key].type)
        except msgspec.ValidationError as error:
            mistakes.append(f"{where}.{key}: {_plain(error)}")
    mistakes.extend(f"{where}.{name}: missing" for name, field in known.items() if field.required and name not in value)
    if len(mistakes) > found:
        return None
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        mistakes.append(f"{where}: {_plain(error)}")
        return None


def _with_variables(raw: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    merged = {name: dict(value) if isinstance(value, dict) else value for name, value in raw.items()}
    for variable, text in environ.items():
        for table in _TABLES:
            prefix = f"SPRINGTIDE_{table.upper()}_"
            if variable.startswith(prefix):
                merged.setdefault(table, {})[variable.removeprefix(prefix).lower()] = _value(text)
    return merged


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def suggestion(word: str, known: list[str]) -> str:
    """What may have been meant, for the end of a message."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known are: {', '.join(sorted(known)) or 'none'}"


def _plain(error: Exception) -> str:
    return str(error).replace(" - at `$", " at `").replace("Expected", "expected")
