"""The journal of the control loop: what it saw, decided and brought about; one JSON object a line."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from springtide.errors import UserError
from springtide.model import Action, FleetPolicy, Plan, Snapshot

BYTES_MAX = 64 * 1024 * 1024
"""A file that has grown beyond this is put aside and a new one begun."""

FILES_MAX = 4
"""Files kept, the current one included; the oldest goes first."""


class Decision(msgspec.Struct, frozen=True, tag="decision"):
    """All that one tick knew, the limits it was given, and its plan."""

    policy: FleetPolicy
    snapshot: Snapshot
    plan: Plan


class Outcome(msgspec.Struct, frozen=True, tag="outcome"):
    """What came of one action of a tick; `error` is empty when it was done."""

    at_ms: int
    tick: int
    action: Action
    error: str = ""


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """Something outside that failed, other than an action: an observation, or a try that is repeated."""

    at_ms: int
    tick: int
    source: str
    error: str


Entry = Decision | Outcome | Fault

_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODER: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


class Journal:
    """Writes entries to `path`; `path.1` is the file before it, `path.2` the one before that."""

    def __init__(self, path: Path, bytes_max: int = BYTES_MAX, files_max: int = FILES_MAX) -> None:
        """Go on with the file if there is one. Raises UserError when it cannot be written."""
        self.path = path
        self._bytes_max = bytes_max
        self._files_max = files_max
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(path)
            self._file = path.open("ab")
        except OSError as error:
            raise UserError(f"the journal {path} cannot be written: {error}; name another place") from error

    def write(self, entry: Entry) -> None:
        """Add an entry; it is with the operating system when this returns. Raises OSError."""
        self._file.write(_ENCODER.encode(entry) + b"\n")
        self._file.flush()
        if self._file.tell() > self._bytes_max:
            self._rotate()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._files_max - 2, -1, -1):
            older = _numbered(self.path, number)
            if older.exists():
                older.replace(_numbered(self.path, number + 1))
        # With a single file there is nothing to put it aside to: it is begun anew.
        self._file = self.path.open("wb")


def read_journal(path: Path) -> Iterator[Entry]:
    """All entries, oldest first, also of the files put aside. A last line that was cut off is left out.

    Raises UserError when there is no such journal, or a line of it is not an entry.
    """
    files: list[Path] = []
    while (older := _numbered(path, len(files) + 1)).exists():
        files.append(older)
    for file in [*reversed(files), path]:
        yield from _read_file(file)


def _read_file(path: Path) -> Iterator[Entry]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith(b"\n"):
                    yield _decode(line, path, number)
    except OSError as error:
        raise UserError(f"the journal {path} cannot be read: {error.strerror}; name a journal's file") from error


def _decode(line: bytes, path: Path, number: int) -> Entry:
    try:
        return _DECODER.decode(line)
    except msgspec.DecodeError as error:
        raise UserError(f"{path}, line {number}: not an entry of a journal ({error}); remove the line") from error


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path


def _cut_torn_line(path: Path) -> None:
    """A crash may leave half a line at the end, and the next entry must not be glued to it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, 2)
        while end > 0:
            begin = max(0, end - 65536)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                file.truncate(begin + newline + 1)
                return
            end = begin
        file.truncate(0)
