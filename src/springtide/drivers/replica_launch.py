"""What a replica is started with on any runtime: its command with the placeholders filled, and its secrets."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from springtide.errors import ReplicaError
from springtide.model import ReplicaSpec, ServiceSpec

REPLICA_VARIABLE = "SPRINGTIDE_REPLICA_ID"
ANNOUNCE_VARIABLE = "SPRINGTIDE_ANNOUNCE"
PORT_VARIABLE = "PORT"

ANNOUNCE = "{announce}"
DEFINITIONS_MAX = 1_000
"""Revisions that a runtime knows; the oldest makes room."""

SECRET_BYTES_MAX = 64 * 1024
_REDACTED = "***"


class Definitions:
    """The revisions that a runtime was told of, by service and revision."""

    def __init__(self) -> None:
        """Know none."""
        self._specs: dict[tuple[str, str], ServiceSpec] = {}

    def add(self, service: ServiceSpec) -> None:
        """Keep a revision; one that is known already stays as it is."""
        key = (service.name, service.revision)
        if key in self._specs:
            return
        while len(self._specs) >= DEFINITIONS_MAX:
            del self._specs[next(iter(self._specs))]
        self._specs[key] = service

    def of(self, spec: ReplicaSpec) -> ServiceSpec:
        """What a replica is to be. Raises ReplicaError when its revision has not been defined."""
        found = self._specs.get((spec.service, spec.revision))
        if found is None:
            raise ReplicaError(
                f"{spec.replica_id} cannot be started: revision {spec.revision!r} of service {spec.service} is not "
                "defined here; define it first"
            )
        return found


def filled(command: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The command with `{name}` replaced for each of `values`; other braces stay as they are."""
    words = []
    for word in command:
        for name, value in values.items():
            word = word.replace("{" + name + "}", value)  # noqa: PLW2901 - each turn replaces one more name
        words.append(word)
    return words


def announces(service: ServiceSpec) -> bool:
    """Whether its program chooses its own port and announces it."""
    return any(ANNOUNCE in word for word in service.command)


def read_secrets(secrets: Mapping[str, str]) -> dict[str, str]:
    """From variables and files to variables and values. One line end at the end of a file is no part of its value.

    Raises ReplicaError naming the file, never what is in it.
    """
    values = {}
    for variable, name in secrets.items():
        try:
            with Path(name).open("rb") as file:
                value = file.read(SECRET_BYTES_MAX + 1)
        except OSError as error:
            raise ReplicaError(
                f"the secret {variable} cannot be read from {name}: {error.strerror}; put its value there"
            ) from error
        if len(value) > SECRET_BYTES_MAX or b"\0" in value:
            raise ReplicaError(
                f"the secret {variable} in {name} has a zero byte or more than {SECRET_BYTES_MAX} bytes; "
                "give it in text, or as the path of a file"
            )
        values[variable] = value.decode(errors="surrogateescape").removesuffix("\n").removesuffix("\r")
    return values


def redacted(text: str, values: Iterable[str]) -> str:
    """The text without these values: a program that fails may write out what it was given."""
    for value in sorted(values, key=len, reverse=True):
        if value:
            text = text.replace(value, _REDACTED)
    return text


def last_lines(text: str, count: int) -> list[str]:
    """The last `count` lines; none for a count of 0."""
    return text.splitlines()[-count:] if count > 0 else []
