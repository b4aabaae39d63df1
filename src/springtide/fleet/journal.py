"""The journal of the control loop: what it saw, decided and brought about; one JSON object a line.

Of a snapshot only those fields are written that differ from the service's snapshot before it in the same file, so a
thousand replicas that stay as they are cost a line once. A file begins with whole snapshots, and so does a loop that
goes on with one: each file is read by itself.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from springtide.errors import UserError
from springtide.model import COUNTER, Action, FleetPolicy, Plan, Snapshot

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
    service: str = COUNTER


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """Something outside that failed, other than an action: an observation, or a try that is repeated."""

    at_ms: int
    tick: int
    source: str
    error: str


Entry = Decision | Outcome | Fault


class _Written(msgspec.Struct, frozen=True, tag="decision"):
    """A decision's line. `same` names the fields of the snapshot that are as in the line of the service before it."""

    policy: FleetPolicy
    snapshot: dict[str, Any]
    plan: Plan
    same: tuple[str, ...] = ()


class _Read(msgspec.Struct, frozen=True, tag="decision"):
    """The same, as it is read."""

    policy: FleetPolicy
    snapshot: dict[str, msgspec.Raw]
    plan: Plan
    same: tuple[str, ...] = ()


_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODER: msgspec.json.Decoder[_Read | Outcome | Fault] = msgspec.json.Decoder(_Read | Outcome | Fault)
_SNAPSHOT = msgspec.json.Decoder(Snapshot)
_SERVICE = msgspec.json.Decoder(str)
_DEFAULT_SERVICE = msgspec.Raw(_ENCODER.encode(COUNTER))


class Journal:
    """Writes entries to `path`; `path.1` is the file before it, `path.2` the one before that."""

    def __init__(self, path: Path, bytes_max: int = BYTES_MAX, files_max: int = FILES_MAX) -> None:
        """Go on with the file if there is one. Raises UserError when it cannot be written."""
        self.path = path
        self._bytes_max = bytes_max
        self._files_max = files_max
        self._before: dict[str, Snapshot] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(path)
            # Unbuffered: what could not be written is not written later, in the middle of another line.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"the journal {path} cannot be written: {error}; name another place") from error

    def write(self, entry: Entry) -> None:
        """Add an entry; it is with the operating system when this returns. Raises OSError, and then has no part."""
        line = _ENCODER.encode(self._shortened(entry) if isinstance(entry, Decision) else entry) + b"\n"
        begin = self._file.tell()
        try:
            self._write_all(line)
        except OSError:
            self._before.clear()
            self._file.truncate(begin)
            raise
        if isinstance(entry, Decision):
            self._before[entry.snapshot.service] = entry.snapshot
        if self._file.tell() > self._bytes_max:
            self._rotate()

    def _write_all(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _shortened(self, decision: Decision) -> _Written:
        before = self._before.get(decision.snapshot.service)
        names = Snapshot.__struct_fields__
        values = {name: getattr(decision.snapshot, name) for name in names}
        # The service itself always stays: it says which line is meant by the one before.
        same = () if before is None else tuple(n for n in names if n != "service" and getattr(before, n) == values[n])
        for name in same:
            del values[name]
        return _Written(decision.policy, values, decision.plan, same)

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
        self._file = self.path.open("wb", buffering=0)
        self._before.clear()


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
    before: dict[str, dict[str, msgspec.Raw]] = {}
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith(b"\n"):
                    yield _decode(line, path, number, before)
    except OSError as error:
        raise UserError(f"the journal {path} cannot be read: {error.strerror}; name a journal's file") from error


def _decode(line: bytes, path: Path, number: int, before: dict[str, dict[str, msgspec.Raw]]) -> Entry:
    """`before` is the fields of each service's last snapshot, which it is given the new ones of."""
    try:
        read = _DECODER.decode(line)
        if not isinstance(read, _Read):
            return read
        service = _SERVICE.decode(read.snapshot.get("service", _DEFAULT_SERVICE))
        fields = read.snapshot | {name: before[service][name] for name in read.same}
        before[service] = {name: msgspec.Raw(bytes(raw)) for name, raw in fields.items()}
        return Decision(read.policy, _SNAPSHOT.decode(_ENCODER.encode(fields)), read.plan)
    except KeyError as error:
        raise UserError(f"{path}, line {number}: rests on a line before it that is gone; remove this one") from error
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
