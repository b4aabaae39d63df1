"""A HAProxy of our own: one process for several services, which come and go by seamless reloads.

Replicas come and go without a reload (`haproxy.py`). A service needs one: the master process starts a new worker,
hands it the listening sockets, and the old worker finishes its requests. The configuration on disk always has the
endpoints in force, so that a restart begins with them.
"""

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from springtide.drivers.balanced_service import SERVICES_MAX, BalancedService, check_service
from springtide.drivers.balancer_process import BalancerProcess, Front, Kept, forget, free_port, read_kept, replace_file
from springtide.drivers.child import Child, spawn
from springtide.drivers.haproxy import HaproxyBalancer
from springtide.drivers.haproxy_api import SERVER, RuntimeApi
from springtide.drivers.haproxy_config import Limits, endpoint_of, global_text, service_text
from springtide.drivers.haproxy_latency import LatencyLog
from springtide.errors import BalancerError, EngineError
from springtide.model import Endpoint
from springtide.ports import Clock

HOST = "127.0.0.1"
VERSION_MIN = (2, 6)
READY_S_MAX = 10.0
CONNECTIONS_MAX = 20_000
"""Open client connections, if the limit of open files allows it: each needs two, and the checks some more."""

_CHECK_FILES_MAX = 4_000
_FILES_MAX = 2 * CONNECTIONS_MAX + 10_000
_OTHER_FILES = 200
_CONNECTIONS_MIN = 64
_SOCKET_PATH_MAX = 90  # of 108 bytes: HAProxy adds its pid and a suffix while it binds
_CHECK_CONFIG_S = 10.0
_POLL_S = 0.02
_WHERE = f"{os.defpath}:/usr/sbin:/usr/local/sbin:/sbin"


class EmbeddedHaproxy:
    """A running HAProxy. Clients of a service send to its port; its balancer says where that goes."""

    name = "haproxy"

    def __init__(self, folder: Path, clock: Clock, host: str, *, survive: bool) -> None:
        """Use `start_haproxy`."""
        self.host = host
        self.process: BalancerProcess | None = None
        """The master process; None before the start and after the end."""
        self._folder = folder
        self._clock = clock
        self._survive = survive
        self._fronts: dict[str, Front] = {}
        self._balancers: dict[str, HaproxyBalancer] = {}
        self._api = RuntimeApi(folder / "api.sock", clock)

    def port(self, service: str) -> int:
        """Where clients of a service send to. Raises EngineError when it is not served."""
        return self._front(service).port

    def url(self, service: str) -> str:
        """The same, as a URL."""
        return f"http://{self.host}:{self.port(service)}"

    def balancer(self, service: str) -> HaproxyBalancer:
        """The balancer of a service. Raises EngineError when it is not served."""
        self._front(service)
        return self._balancers[service]

    @property
    def services(self) -> frozenset[str]:
        """The names of what is served."""
        return frozenset(self._fronts)

    async def ensure_service(self, service: BalancedService) -> None:
        """Serve it from now on, as it is given; nothing is done when it is so already. No request is dropped.

        Raises EngineError; what was served before goes on.
        """
        check_service(service)
        old = self._fronts.get(service.name)
        if old and old.service == service:
            return
        if not old and len(self._fronts) >= SERVICES_MAX:
            raise EngineError(f"{SERVICES_MAX} services are served already; start another balancer")
        port = old.port if old and service.port in {0, old.port} else free_port(self.host, service.port)
        await self._serve({**self._fronts, service.name: Front(service, port)})

    async def remove_service(self, name: str) -> None:
        """Serve it no longer; open requests finish. One that is not served is ignored."""
        if name in self._fronts:
            await self._serve({key: front for key, front in self._fronts.items() if key != name})
            self._balancers.pop(name).close()

    async def restart(self) -> None:
        """Start it again after it died, with the same ports and the endpoints it had. Raises EngineError."""
        await self._end()
        await self._launch()

    async def stop(self) -> None:
        """End it; requests that are open are cut."""
        self.detach()
        await self._end()
        forget(self._folder)

    def detach(self) -> None:
        """Leave it running (where it was started to survive us) and let go of it."""
        for balancer in self._balancers.values():
            balancer.close()

    def _front(self, service: str) -> Front:
        if service not in self._fronts:
            raise EngineError(f"the balancer does not serve {service}; it serves {', '.join(sorted(self._fronts))}")
        return self._fronts[service]

    async def begin(self, services: Sequence[BalancedService]) -> None:
        """Take over the HAProxy that runs in the folder, start again one that died there, or start a new one.

        Then serve what is asked for. Once only.
        """
        kept = read_kept(self._folder)
        if kept:
            self.process = await self._found(kept)
            for name, front in kept.fronts.items():
                self._take(name, front)
            if not self.process:
                await self._revive()
        for service in services:
            check_service(service)
            if self.process:
                await self.ensure_service(service)
            else:
                self._take(service.name, Front(service, free_port(self.host, service.port)))
        if not self.process:
            await self._launch(fresh=True)

    async def _revive(self) -> None:
        """What the files say may not be possible any more: then begin anew."""
        try:
            await self._launch()
        except EngineError:
            self.detach()
            self._fronts, self._balancers = {}, {}

    async def _found(self, kept: Kept) -> BalancerProcess | None:
        found = BalancerProcess.find(self._folder, kept)
        if found:
            try:
                await self._api.pid()
            except BalancerError:
                await found.stop(self._clock)
                return None
        return found

    def _take(self, name: str, front: Front) -> None:
        """Make its balancer; the object stays the same while the service is served."""
        self._fronts = {**self._fronts, name: front}
        balancer = self._balancers.get(name)
        if balancer:
            balancer.service = front.service
            return
        log = LatencyLog(self._log(name), self._clock)
        self._balancers[name] = HaproxyBalancer(self._api, front.service, self._clock, log, self._keeper(name))

    def _keeper(self, name: str) -> Callable[[Sequence[Endpoint]], None]:
        def keep(endpoints: Sequence[Endpoint]) -> None:
            try:
                self._write_service(self._fronts[name], endpoints)
            except OSError as error:
                raise BalancerError(
                    f"the endpoints are in force, but cannot be kept in {self._folder}: {error.strerror}; "
                    "make room, else a restart forgets them"
                ) from error

        return keep

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log.sock"

    def _write_service(self, front: Front, endpoints: Sequence[Endpoint]) -> None:
        name = front.service.name
        text = service_text(front.service, front.port, self.host, self._log(name), endpoints)
        replace_file(self._folder / "conf" / f"service-{name}.cfg", text.encode())

    async def _serve(self, fronts: dict[str, Front]) -> None:
        """Let the running HAProxy serve exactly these, or go on as before."""
        async with contextlib.AsyncExitStack() as at_rest:
            for name in sorted(self._balancers):
                await at_rest.enter_async_context(self._balancers[name].write_lock)
            endpoints = {name: await self._endpoints(name) for name in self._fronts}
            before = self._fronts
            try:
                self._write(fronts, endpoints)
                await self._reload()
            except BaseException:
                self._write(before, endpoints)
                raise
            self._fronts = fronts
            for name, front in fronts.items():
                self._take(name, front)
            self._write_kept()

    async def _endpoints(self, name: str) -> tuple[Endpoint, ...]:
        """The list in force: what was set, or what was found running."""
        wanted = self._balancers[name].wanted
        if wanted is not None:
            return wanted
        try:
            rows = await self._api.statistics(name)
        except BalancerError as error:
            raise EngineError(str(error)) from error
        return tuple(endpoint_of(row.server, row.weight) for row in rows if row.kind == SERVER and not row.leaves)

    def _write(self, fronts: dict[str, Front], endpoints: dict[str, tuple[Endpoint, ...]]) -> None:
        try:
            conf = self._folder / "conf"
            conf.mkdir(parents=True, exist_ok=True)
            for name, front in fronts.items():
                self._write_service(front, endpoints.get(name, ()))
            for path in conf.glob("service-*.cfg"):
                if path.stem.removeprefix("service-") not in fronts:
                    path.unlink()
            self._write_global()
        except OSError as error:
            raise EngineError(
                f"HAProxy cannot keep its files in {self._folder}: {error.strerror}; name a folder you may write to"
            ) from error

    def _write_global(self) -> None:
        conf = self._folder / "conf"
        servers = sum(path.read_bytes().count(b"\n  server ") for path in conf.glob("service-*.cfg"))
        replace_file(conf / "0-global.cfg", global_text(self._folder, limits(servers)).encode())

    def _write_kept(self) -> None:
        if self.process:
            self.process.keep(self._folder, self._fronts)

    async def _launch(self, *, fresh: bool = False) -> None:
        """Start it with the configuration on disk, which `fresh` begins anew."""
        binary = haproxy_binary()
        (self._folder / "state").unlink(missing_ok=True)
        if fresh:
            self._write(self._fronts, {})
        else:
            self._write_global()
        command = [str(binary), "-W", "-q", "-S", str(self._folder / "master.sock"), "-f", str(self._folder / "conf")]
        self.process = BalancerProcess.launch("HAProxy", command, self._folder, survive=self._survive)
        try:
            await self._until_served(0, self.process.child)
        except BaseException:
            await self._end()
            raise
        self._write_kept()

    async def _reload(self) -> None:
        """A new worker with the configuration on disk; it knows which servers were well."""
        if self.process is None:
            raise EngineError("HAProxy does not run; start it again")
        await self._check_config()
        try:
            for balancer in self._balancers.values():
                await balancer.count()
            before = await self._api.pid()
            replace_file(self._folder / "state", (await self._api.call("show servers state")).encode())
        except (BalancerError, OSError) as error:
            raise EngineError(f"HAProxy cannot be reloaded: {error}") from error
        self.process.signal(signal.SIGUSR2)
        await self._until_served(before, self.process.child)

    async def _check_config(self) -> None:
        checking = spawn(
            "HAProxy",
            [str(haproxy_binary()), "-c", "-q", "-f", str(self._folder / "conf")],
            self._folder / "check.log",
        )
        code = await checking.wait(self._clock, _CHECK_CONFIG_S)
        if code is None:
            await checking.stop(self._clock, 0.0, signal.SIGKILL)
        if code != 0:
            raise checking.failure("does not take the new configuration and goes on with the one before")

    async def _until_served(self, before: int, child: Child | None) -> None:
        """Wait until a worker other than `before` answers."""
        until = self._clock.monotonic_s() + READY_S_MAX
        while self._clock.monotonic_s() < until:
            if child and child.returncode is not None:
                said = child.log_tail()
                if "Address already in use" in said:
                    raise EngineError(f"HAProxy cannot listen: a port is in use; name another one\n{said}")
                raise child.failure(f"ended at once with status {child.returncode}")
            with contextlib.suppress(BalancerError):
                if await self._api.pid() != before:
                    return
            await self._clock.sleep(_POLL_S)
        log = self._folder / "haproxy.log"
        raise EngineError(f"HAProxy did not take its configuration within {READY_S_MAX:.0f} s; see {log}")

    async def _end(self) -> None:
        if self.process:
            await self.process.stop(self._clock)
        self.process = None


async def start_haproxy(
    folder: Path,
    clock: Clock,
    services: Sequence[BalancedService] = (),
    host: str = HOST,
    *,
    survive: bool = False,
) -> EmbeddedHaproxy:
    """Start a HAProxy that keeps its files in `folder` and serves these; it needs no root.

    With `survive` it goes on when this process ends, and the next call with the same folder takes it over, with the
    services and endpoints it has. Raises EngineError when the folder cannot be written, a port is in use, there is no
    HAProxy of version 2.6 or later, or it ends.
    """
    folder = _absolute(folder)
    if len(str(folder / "master.sock").encode()) > _SOCKET_PATH_MAX:
        raise EngineError(f"{folder} is too long for the name of a socket; name a folder of at most 78 characters")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(
            f"HAProxy cannot keep its files in {folder}: {error.strerror}; name a folder that you may write to"
        ) from error
    engine = EmbeddedHaproxy(folder, clock, host, survive=survive)
    try:
        await engine.begin(services)
    except BalancerError as error:
        engine.detach()
        raise EngineError(str(error)) from error
    except BaseException:
        engine.detach()
        raise
    return engine


def haproxy_binary() -> Path:
    """The HAProxy that is installed. Raises EngineError when there is none of a usable version."""
    found = shutil.which("haproxy") or shutil.which("haproxy", path=_WHERE)
    if found is None:
        raise EngineError("HAProxy is not installed; install it (Debian: apt-get install haproxy) or take Envoy")
    said = subprocess.run([found, "-v"], capture_output=True, text=True, check=False, timeout=10).stdout
    version = re.search(r"version (\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) < VERSION_MIN:
        raise EngineError(f"{found} is not version 2.6 or later; install a newer HAProxy or take Envoy")
    return Path(found)


def _absolute(folder: Path) -> Path:
    return folder.absolute()


def limits(servers: int) -> Limits:
    """What the limit of open files leaves for clients, each with a connection to a replica, beside the checks."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _FILES_MAX)
    checks = max(min(files // 4, _CHECK_FILES_MAX), servers + _OTHER_FILES)
    connections = min(CONNECTIONS_MAX, (files - checks) // 2)
    if connections < _CONNECTIONS_MIN:
        raise EngineError(
            f"{servers} replicas leave no room for clients in {files} open files; raise the limit (ulimit -Hn)"
        )
    return Limits(connections=connections, spare_files=checks - servers - _OTHER_FILES)
