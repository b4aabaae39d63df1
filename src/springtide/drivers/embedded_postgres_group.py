"""An embedded PostgreSQL in several zones: a primary and standbys, each commit on two disks, and their keeper."""

import asyncio
import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from springtide.drivers.embedded_postgres import PORT, SUPERUSER, find_programs, prepare_home
from springtide.drivers.netns import Namespace
from springtide.drivers.postgres_keeper import PostgresKeeper, Primacy, PrimacyFile, join
from springtide.drivers.postgres_member import Member
from springtide.drivers.run_folder import make_run_folder
from springtide.errors import EngineError
from springtide.ports import Clock

COPIES_MIN = 2
COPIES_MAX = 5
READY_S_MAX = 60.0

_FILE = "primary.json"
_PROGRAMS = ("postgres", "initdb", "pg_basebackup", "pg_rewind")
_POLL_S = 0.05


class EmbeddedPostgresGroup:
    """Running copies. `dsn` names all of them: connect by `PostgresLedger.connect`, which finds the primary."""

    def __init__(
        self, members: Sequence[Member], clock: Clock, folder: Path, keeper: PostgresKeeper, *, ours: bool
    ) -> None:
        """Use `start_postgres_group`."""
        self.members = {member.name: member for member in members}
        self.keeper = keeper
        hosts = [member.engine.host for member in members]
        if hosts[0].startswith("/"):
            self.dsn = f"postgresql://{SUPERUSER}@/postgres?host={quote(','.join(hosts))}"
        else:
            self.dsn = f"postgresql://{SUPERUSER}@{','.join(f'{host}:{PORT}' for host in hosts)}/postgres"
        self._clock = clock
        self._folder = folder
        self._ours = ours
        self._keeping: asyncio.Task[None] | None = None

    @property
    def primary(self) -> Member:
        """The one that takes writes, or is about to."""
        return self.keeper.primary

    async def until_sound(self, seconds: float = READY_S_MAX) -> None:
        """Wait until the primary answers and all others follow it. Raises EngineError."""
        until_s = self._clock.monotonic_s() + seconds
        while not await self._sound():
            if self._clock.monotonic_s() > until_s:
                why = self.keeper.alarm or f"see the logs in {self._folder}"
                raise EngineError(f"the copies of PostgreSQL were not sound after {seconds:g} s: {why}")
            await self._clock.sleep(_POLL_S)

    async def _sound(self) -> bool:
        primary = self.primary
        for member in self.members.values():
            status = await member.status()
            if status is None or status.standby == (member is primary):
                return False
            if member is not primary and status.heard_s is None:
                return False
        return True

    def keep(self) -> None:
        """Begin to watch over them."""
        self._keeping = asyncio.create_task(self.keeper.run(), name="keep PostgreSQL")

    async def stop(self) -> None:
        """End all of them; what they committed stays, unless the folder was ours."""
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        await asyncio.gather(*(member.engine.stop() for member in self.members.values()))
        for member in self.members.values():
            if member.runs:
                await member.engine.kill()
        if self._ours:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


async def start_postgres_group(
    clock: Clock,
    folder: Path | None = None,
    zones: Sequence[str] = ("zone-a", "zone-b", "zone-c"),
    nodes: Sequence[Namespace] | None = None,
    *,
    kills: bool = True,
) -> EmbeddedPostgresGroup:
    """Start one copy in each zone, on the data in `folder` or as a new database, and keep them.

    The names of the zones must stay the same. With `nodes` each runs in a namespace of its own. With two zones
    nothing is committed while either is away, and nobody takes over from a lost primary (`decide/copies.py`: of three,
    two are left). `kills` is for tests: without it a lost primary is left to itself, as one on another machine is.
    Raises EngineError.
    """
    if not COPIES_MIN <= len(set(zones)) == len(zones) <= COPIES_MAX:
        raise EngineError(f"{len(zones)} copies of PostgreSQL: name {COPIES_MIN} to {COPIES_MAX} different zones")
    home = (folder or make_run_folder("pg-")).resolve()
    group = None
    try:
        home.mkdir(mode=0o755, parents=True, exist_ok=True)
        home.chmod(home.stat().st_mode | 0o111)  # each copy in it keeps to its own; root's run as another user
        for zone in zones:
            prepare_home(home / zone)
        programs = await find_programs(home, _PROGRAMS)
        members = [
            Member(zone, clock, home / zone, programs, nodes[at] if nodes else None, zones)
            for at, zone in enumerate(zones)
        ]
        file = PrimacyFile(home / _FILE)
        group = EmbeddedPostgresGroup(
            members, clock, home, PostgresKeeper(members, clock, file, kills=kills), ours=folder is None
        )
        await _start(group, members, file, clock)
    except BaseException:
        if group is not None:
            await group.stop()
        if folder is None:
            shutil.rmtree(home, ignore_errors=True)
        raise
    group.keep()
    return group


async def _start(group: EmbeddedPostgresGroup, members: Sequence[Member], file: PrimacyFile, clock: Clock) -> None:
    new = file.read() is None
    if new:
        if any(member.created for member in members):
            raise EngineError(f"there are copies of PostgreSQL in {members[0].engine.home.parent}, but {_FILE} is gone")
        await members[0].engine.start()
        file.write(Primacy(members[0].name, 1))
    primary = group.primary
    if not new:
        interrupted = primary.follows  # a failover was written down, and not done
        await primary.engine.start()
        if interrupted:
            await primary.promote()
    others = [member for member in members if member is not primary]
    results = await asyncio.gather(
        *(join(member, primary, apart=not member.follows) for member in others), return_exceptions=True
    )
    errors = [error for error in results if isinstance(error, BaseException)]
    if len(errors) == len(others):
        raise errors[0]
    until_s = clock.monotonic_s() + READY_S_MAX
    while not await primary.ready():
        if clock.monotonic_s() > until_s:
            raise EngineError(f"no copy of PostgreSQL follows {primary.name}; see {primary.engine.log}")
        await clock.sleep(_POLL_S)
