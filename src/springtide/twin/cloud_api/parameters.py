"""The parameters of a call: `Name`, `Name.1`, `Name.1.Field`, all of them text on the wire."""

import hashlib
import json
from collections.abc import Mapping
from typing import TypeVar

from springtide.twin.cloud_api.answers import ApiError, invalid, missing

LIST_MAX = 100
"""Entries of a list that are read: no list of the calls served here may be longer."""

Number = TypeVar("Number", int, float)


class Parameters:
    """What a call was given. Getters raise ApiError for what cannot be read."""

    def __init__(self, values: Mapping[str, str]) -> None:
        """As they are on the wire, decoded."""
        self._values = values

    def text(self, name: str, otherwise: str = "") -> str:
        """A text."""
        return self._values.get(name, otherwise)

    def required(self, name: str) -> str:
        """A text that must be there. Raises MissingParameter."""
        if not self._values.get(name):
            raise missing(name)
        return self._values[name]

    def whole(self, name: str, otherwise: int, low: int, high: int) -> int:
        """A whole number within bounds."""
        return _number(int, name, self._values.get(name, ""), otherwise, (low, high))

    def decimal(self, name: str, otherwise: float, low: float, high: float) -> float:
        """A number within bounds."""
        return _number(float, name, self._values.get(name, ""), otherwise, (low, high))

    def flag(self, name: str, *, otherwise: bool = False) -> bool:
        """`true` or `false`."""
        text = self._values.get(name, "").lower()
        if text not in {"", "true", "false"}:
            raise invalid(name, "it must be true or false")
        return text == "true" if text else otherwise

    def numbered(self, name: str, most: int = LIST_MAX) -> list[str]:
        """`Name.1`, `Name.2` …. Raises InvalidParameter for more than `most`."""
        found: list[str] = []
        while f"{name}.{len(found) + 1}" in self._values:
            found.append(self._values[f"{name}.{len(found) + 1}"])
            if len(found) > most:
                raise invalid(name, f"at most {most} are allowed")
        return found

    def ids(self, name: str, most: int) -> list[str] | None:
        """A JSON array of ids; None when it was not sent."""
        text = self._values.get(name)
        if text is None:
            return None
        try:
            found = json.loads(text)
        except ValueError as error:
            raise invalid(name, "it must be a JSON array of ids") from error
        if not isinstance(found, list) or len(found) > most or not all(isinstance(each, str) for each in found):
            raise invalid(name, f"it must be a JSON array of at most {most} ids")
        return found

    def tags(self) -> dict[str, str]:
        """`Tag.N.Key` and `Tag.N.Value`, at most 20 (ECS, "Tags")."""
        tags: dict[str, str] = {}
        while (key := self._values.get(f"Tag.{len(tags) + 1}.Key")) is not None:
            if key in tags:
                raise ApiError("Duplicate.TagKey", "The Tag.N.Key contain duplicate key.")
            tags[key] = self._values.get(f"Tag.{len(tags) + 1}.Value", "")
        if len(tags) > 20:  # noqa: PLR2004 - the documented limit, see above
            raise ApiError("InvalidTagCount.Exceed", "At most 20 tags are allowed.")
        return tags

    def fingerprint(self) -> str:
        """What must be the same for the same client token: all parameters."""
        return hashlib.sha256(json.dumps(sorted(self._values.items())).encode()).hexdigest()


def _number(kind: type[Number], name: str, text: str, otherwise: Number, bounds: tuple[Number, Number]) -> Number:
    if not text:
        return otherwise
    try:
        value = kind(text)
    except ValueError as error:
        raise invalid(name, "it must be a number") from error
    if not bounds[0] <= value <= bounds[1]:
        raise invalid(name, f"it must be between {bounds[0]} and {bounds[1]}")
    return value
