"""Watches over the copies of a replicated PostgreSQL: fails over when the primary is lost, and brings lost copies back.

There is one keeper. It decides on what it hears itself and on what the standbys hear, waits out hiccups, and lets a
standby take over only when no acknowledged commit can be missing from it (`decide/copies.py`). An old primary that
could not be ended acknowledges nothing meanwhile, since nobody follows it; when it is heard again it is made to follow.
"""

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from springtide.decide.copies import enough_fenced, heir
from springtide.drivers.postgres_member import Member, Status
from springtide.errors import EngineError
from springtide.ports import Clock

ACKED = 1
"""Copies beside the primary that have each acknowledged commit on disk."""

LOOK_S = 0.25
SILENT_S = 3.0
"""A primary that is not heard for this long is lost; twice as long when a standby still hears it."""

DEAD_S = 0.75
"""A primary whose processes are all gone is lost this soon."""

HEARD_S = 2.5
"""A standby asks its primary for a sign of life after 2 s (half of `wal_receiver_timeout`)."""

STRAY_S = 4.0
"""A standby that hears nothing from a primary that is well for this long has to be set right."""

ASLEEP_S = 5.0
"""A keeper that did not look for this long was frozen itself: it starts to listen anew."""

JOIN_WAIT_S = 1.0
JOIN_WAIT_S_MAX = 60.0

_log = structlog.get_logger(__name__)


class Primacy(msgspec.Struct, frozen=True):
    """Who is the primary, and for the how manyth time that was decided."""

    primary: str
    term: int


class PrimacyFile:
    """Where it is written down, before it is done."""

    def __init__(self, path: Path) -> None:
        """The file need not be there."""
        self._path = path

    def read(self) -> Primacy | None:
        """None when nobody was ever primary. Raises EngineError."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Primacy)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise EngineError(f"{self._path} cannot be read ({error}); restore it from a backup") from error

    def write(self, primacy: Primacy) -> None:
        """Durably, whole or not at all."""
        aside = self._path.with_suffix(".part")
        with aside.open("wb") as file:
            file.write(msgspec.json.encode(primacy))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class _Joining:
    """How far one copy is with being brought back."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.tries = 0
        self.not_before_s = 0.0
        self.stray_since_s: float | None = None

    @property
    def busy(self) -> bool:
        return self.task is not None and not self.task.done()


class PostgresKeeper:
    """The keeper of one group. `failovers` counts; `alarm` says what it cannot mend, and is empty while all is well.

    Copies whose zone is in `away` are not brought back: say so of a zone that is being worked on.
    """

    def __init__(self, members: Sequence[Member], clock: Clock, file: PrimacyFile, *, kills: bool = True) -> None:
        """`kills`: the processes are on this machine, so that those of a lost primary can be ended for certain."""
        self.failovers = 0
        self.alarm = ""
        self.away: set[str] = set()
        self._members = {member.name: member for member in members}
        self._clock = clock
        self._file = file
        self._kills = kills
        self._heard_s = clock.monotonic_s()
        self._looked_s = clock.monotonic_s()
        self._alone_since_s: float | None = None
        self._joining = {name: _Joining() for name in self._members}

    @property
    def primary(self) -> Member:
        """The one that is, or is about to be, the primary. Raises EngineError before there was one."""
        primacy = self._file.read()
        if primacy is None or primacy.primary not in self._members:
            raise EngineError("these copies of PostgreSQL have no primary; start them with start_postgres_group")
        return self._members[primacy.primary]

    async def run(self) -> None:
        """Watch until cancelled."""
        self._heard_s = self._clock.monotonic_s()
        try:
            while True:
                try:
                    await self.look()
                except EngineError as error:
                    self._raise_alarm(str(error))
                except Exception as error:  # noqa: BLE001 - a keeper that ended would leave its store without one
                    _log.exception("keeper_failed")
                    self._raise_alarm(f"the keeper failed: {error!r}; see its log")
                self._looked_s = self._clock.monotonic_s()
                await self._clock.sleep(LOOK_S)
        finally:
            for joining in self._joining.values():
                if joining.task is not None:
                    joining.task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await joining.task

    async def look(self) -> None:
        """Look once at all copies and do what is to be done. Raises EngineError when that fails."""
        primary = self.primary
        names = [name for name, joining in self._joining.items() if not joining.busy]
        answers = await asyncio.gather(*(self._members[name].status() for name in names))
        said = dict(zip(names, answers, strict=True))
        mine, now_s = said.get(primary.name), self._clock.monotonic_s()
        if now_s - self._looked_s > ASLEEP_S:
            self._heard_s = now_s
        self._looked_s = now_s
        if mine is not None and mine.standby:
            await self._crown(primary, said)
        elif mine is not None:
            self._heard_s = now_s
            self._mend(primary, said)
        elif now_s - self._heard_s >= self._patience_s(primary, said):
            await self._fail_over(primary, said)

    def _patience_s(self, primary: Member, said: Mapping[str, Status | None]) -> float:
        if self._kills and not primary.runs:
            return DEAD_S
        heard = any(one is not None and one.heard_s is not None and one.heard_s < HEARD_S for one in said.values())
        return 2 * SILENT_S if heard else SILENT_S

    async def _fail_over(self, primary: Member, said: Mapping[str, Status | None]) -> None:
        others = [self._members[name] for name, one in said.items() if one is not None and name != primary.name]
        answers = await asyncio.gather(*(one.fence() for one in others), return_exceptions=True)
        logs = {one.name: log for one, log in zip(others, answers, strict=True) if isinstance(log, int)}
        if not enough_fenced(len(logs), len(self._members) - 1, ACKED):
            await self._stay(primary, others, len(logs))
            return
        if self._kills:
            await primary.engine.kill()
        successor = self._members[heir(logs)]
        primacy = self._file.read()
        term = 1 + (primacy.term if primacy else 0)
        _log.warning("postgres_fails_over", lost=primary.name, successor=successor.name, term=term, logs=logs)
        self._file.write(Primacy(successor.name, term))
        self.failovers += 1
        await self._crown(successor, said)

    async def _stay(self, primary: Member, others: Sequence[Member], fenced: int) -> None:
        """Nobody can take over without the danger of a loss: the primary has to come back."""
        await asyncio.gather(*(one.follow(primary) for one in others), return_exceptions=True)
        self._raise_alarm(
            f"the primary of PostgreSQL ({primary.name}) is lost and only {fenced} of {len(self._members) - 1} other "
            "copies answer, too few to be sure that they have all: bring one of them back, or the primary"
        )
        joining, now_s = self._joining[primary.name], self._clock.monotonic_s()
        if not self._kills or primary.runs or now_s < joining.not_before_s or primary.name in self.away:
            return
        joining.not_before_s = now_s + min(JOIN_WAIT_S * 2**joining.tries, JOIN_WAIT_S_MAX)
        joining.tries += 1
        _log.warning("postgres_primary_starts_again", name=primary.name)
        await primary.engine.restart()

    async def _crown(self, successor: Member, said: Mapping[str, Status | None]) -> None:
        """Carry out what is written down; also after a keeper died in the middle of it."""
        await successor.promote()
        self._heard_s = self._clock.monotonic_s()
        standbys = [self._members[name] for name, one in said.items() if one is not None and one.standby]
        await asyncio.gather(
            *(one.follow(successor) for one in standbys if one is not successor), return_exceptions=True
        )

    def _mend(self, primary: Member, said: Mapping[str, Status | None]) -> None:
        """Bring back what does not follow. What runs and does not answer is left alone: nothing can be done there."""
        for name, one in said.items():
            member, joining = self._members[name], self._joining[name]
            if member is primary:
                joining.tries = 0
            elif one is not None and one.standby and one.heard_s is not None:
                joining.tries, joining.stray_since_s = 0, None
            elif one is None:
                if not member.runs:
                    self._begin(member, primary, apart=not member.follows)
            elif not one.standby:
                self._begin(member, primary, apart=True)
            else:
                self._set_right(member, primary, joining)
        self._tell(primary, said)

    def _tell(self, primary: Member, said: Mapping[str, Status | None]) -> None:
        """Alarm when the primary has had too few followers for a while."""
        follow = sum(one is not None and one.heard_s is not None for name, one in said.items() if name != primary.name)
        now_s = self._clock.monotonic_s()
        if follow >= ACKED:
            self.alarm, self._alone_since_s = "", None
        elif self._alone_since_s is None:
            self._alone_since_s = now_s
        elif now_s - self._alone_since_s > STRAY_S:
            self._raise_alarm(
                f"PostgreSQL commits nothing: no copy follows {primary.name}; bring back the zone of one of the others"
            )

    def _set_right(self, member: Member, primary: Member, joining: _Joining) -> None:
        now_s = self._clock.monotonic_s()
        if joining.stray_since_s is None:
            joining.stray_since_s = now_s
            self._spawn(joining, member.follow(primary))
        elif now_s - joining.stray_since_s > STRAY_S:
            self._begin(member, primary, apart=True)

    def _begin(self, member: Member, primary: Member, *, apart: bool) -> None:
        joining, now_s = self._joining[member.name], self._clock.monotonic_s()
        if now_s < joining.not_before_s or member.name in self.away:
            return
        joining.not_before_s = now_s + min(JOIN_WAIT_S * 2**joining.tries, JOIN_WAIT_S_MAX)
        joining.tries += 1
        joining.stray_since_s = None
        self._spawn(joining, join(member, primary, apart=apart, anew=joining.tries > 2))  # noqa: PLR2004 - the third try

    def _spawn(self, joining: _Joining, work: Coroutine[Any, Any, None]) -> None:
        joining.task = asyncio.ensure_future(self._reported(work))

    async def _reported(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except EngineError as error:
            self._raise_alarm(str(error))

    def _raise_alarm(self, text: str) -> None:
        if text != self.alarm:
            _log.error("postgres_alarm", why=text)
        self.alarm = text


async def join(member: Member, primary: Member, *, apart: bool, anew: bool = False) -> None:
    """End a copy and start it as a standby of the primary: on its data, or (`anew`) on a fresh copy.

    `apart`: its log may have gone another way than the primary's, so what only it has goes. Raises EngineError.
    """
    await member.engine.kill()
    _log.info("postgres_copy_returns", name=member.name, primary=primary.name, apart=apart, anew=anew)
    if anew or not member.created:
        await member.copy(primary)
    elif apart:
        try:
            await member.rewind(primary)
        except EngineError:
            await member.copy(primary)
    await member.start_as_standby(primary)
