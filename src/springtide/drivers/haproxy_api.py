"""HAProxy's Runtime API: commands over its stats socket, and the statistics it answers with."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from springtide.errors import BalancerError
from springtide.ports import Clock

ANSWER_BYTES_MAX = 32 * 1024 * 1024
"""The longest answer is the statistics: 300 bytes for each replica."""

_CALL_S_MAX = 3.0
_LINE_BYTES_MAX = 12_000  # HAProxy reads one line of at most its buffer's size (16 kB)
_CHUNK_BYTES = 256 * 1024
_FINE = {"New server registered.", "Server deleted."}
_BUSY = "Server still has connections attached to it, cannot remove it."


class Row(msgspec.Struct, frozen=True):
    """One line of `show stat`: `proxy` is a frontend or backend, `server` is empty for the proxy itself."""

    proxy: str
    server: str
    kind: int
    status: str
    weight: int
    in_flight: int
    queued: int
    requests: int
    failed: int
    answered_5xx: int
    check_health: int

    @property
    def passes(self) -> bool:
        """The check says that it is well; a weight of 0 does not matter."""
        return self.status.startswith(("UP", "DRAIN", "NOLB"))

    @property
    def leaves(self) -> bool:
        """It gets nothing and is to be deleted."""
        return self.status.startswith("MAINT")


FRONTEND, BACKEND, SERVER = 0, 1, 2

# Of a server: tries that had no good answer. A try that is repeated counts in wretr or wredis, one that is given up
# in econ or eresp.
_FAILED = ("hrsp_5xx", "econ", "eresp", "wretr", "wredis")


class RuntimeApi:
    """The stats socket of a running HAProxy, of level admin. Every call is a connection, with a time limit."""

    def __init__(self, socket: Path, clock: Clock) -> None:
        """Nothing is connected yet."""
        self.socket = socket
        self._clock = clock

    async def change(self, commands: Sequence[str]) -> list[str]:
        """Do these in order; what HAProxy objected to (not that a server to delete is still busy).

        It goes on after an objection, so the caller compares the statistics with what it wanted.
        """
        said: list[str] = []
        for line in _lines(commands):
            answer = await self.call(line)
            words = (word.strip() for word in answer.splitlines())
            said += [word for word in words if word and word not in _FINE and word != _BUSY]
        return said

    async def statistics(self, service: str) -> list[Row]:
        """The lines of one service: its frontend `NAME.in`, its backend `NAME`, and the servers of that."""
        answer = await self.call(f"show stat {service} 6 -1;show stat {frontend_name(service)} 1 -1")
        rows = list(_rows(answer))
        if {row.kind for row in rows} < {FRONTEND, BACKEND}:
            raise BalancerError(
                f"the HAProxy at {self.socket} does not have the service {service}; add it, or look at its log"
            )
        return rows

    async def pid(self) -> int:
        """The process that answers: another one after a reload."""
        return int(await self.info("Pid"))

    async def info(self, name: str) -> str:
        """One figure of `show info`."""
        for line in (await self.call("show info")).splitlines():
            key, _, value = line.partition(": ")
            if key == name:
                return value
        raise BalancerError(f"the HAProxy at {self.socket} does not say its {name}; is it version 2.6 or later?")

    async def call(self, line: str) -> str:
        """One line of commands, and all it answers. Raises BalancerError."""
        try:
            async with self._clock.timeout(_CALL_S_MAX):
                return (await self._exchange(line)).decode(errors="replace")
        except (OSError, TimeoutError) as error:
            raise BalancerError(
                f"HAProxy does not answer at {self.socket} ({error!r}); does it run? see its log"
            ) from error

    async def _exchange(self, line: str) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self.socket)
        try:
            writer.write(line.encode() + b"\n")
            parts: list[bytes] = []
            size = 0
            while data := await reader.read(_CHUNK_BYTES):
                parts.append(data)
                size += len(data)
                if size > ANSWER_BYTES_MAX:
                    raise ConnectionAbortedError(f"the answer is longer than {ANSWER_BYTES_MAX} bytes")
            return b"".join(parts)
        finally:
            writer.close()


def frontend_name(service: str) -> str:
    """The proxy that listens for a service."""
    return f"{service}.in"


def _lines(commands: Sequence[str]) -> Iterator[str]:
    line = ""
    for command in commands:
        if line and len(line) + len(command) > _LINE_BYTES_MAX:
            yield line
            line = ""
        line = f"{line};{command}" if line else command
    if line:
        yield line


def _rows(answer: str) -> Iterator[Row]:
    columns: dict[str, int] = {}
    for line in answer.splitlines():
        if line.startswith("# "):
            columns = {name: at for at, name in enumerate(line[2:].split(","))}
        elif columns and line:
            yield _row(line.split(","), columns)


def _row(fields: Sequence[str], columns: dict[str, int]) -> Row:
    def count(name: str) -> int:
        return int(fields[columns[name]] or 0)

    try:
        kind = count("type")
        return Row(
            proxy=fields[columns["pxname"]],
            server=fields[columns["svname"]] if kind == SERVER else "",
            kind=kind,
            status=fields[columns["status"]],
            weight=count("uweight"),
            in_flight=count("scur"),
            queued=count("qcur"),
            requests=count("stot" if kind == SERVER else "req_tot"),
            failed=sum(count(name) for name in _FAILED),
            answered_5xx=count("hrsp_5xx"),
            check_health=count("check_health"),
        )
    except (LookupError, ValueError) as error:
        raise BalancerError("HAProxy's statistics cannot be read; is it version 2.6 or later?") from error
