"""The runtime port on a Docker Engine: a replica is a container, and the engine is the only place that knows it.

One object is one engine, which serves the nodes of one zone or several. All that is known of a replica is in its
container's labels, so that a runtime that comes after this one adopts all containers of its fleet, and no others. A
draining one is known by its name. See docs/decisions/0012-containers.md for what is left to the engine, and why.
"""

import asyncio
import contextlib
import ipaddress
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog

from springtide.drivers.docker_container import Care, Found, Limits, container_body
from springtide.drivers.docker_engine import CALL_S, DockerEngine
from springtide.drivers.docker_replicas import FleetContainers
from springtide.drivers.docker_usage import Usages
from springtide.drivers.http_get import http_get
from springtide.drivers.replica_launch import Definitions, announces, read_secrets
from springtide.errors import ReplicaError
from springtide.model import Replica, ReplicaSpec, ReplicaState, ServiceSpec, require_identifier
from springtide.ports import Clock

_log = structlog.get_logger(__name__)
_LOCAL = "127.0.0.1"
_POLL_S = 0.02
_PROBES_PER_LOOK = 10
_REMOVED_MAX = 1_000
_ADOPT_PROBE_S = 1.0
_ADOPT_PROBES_AT_ONCE = 32

EnsureImage = Callable[[str], Awaitable[str]]


class DockerSettings(msgspec.Struct, frozen=True):
    """Which engine, for whom, and its limits.

    `fleet` keeps the containers of two fleets on one engine apart. `address` is where the engine's published ports are
    reached; None: the engine is on this machine. `hardened` takes all capabilities and a writable root from every
    container; None does so for images built by `springtide image build`, which are known to run like that. `call_s` is
    how long the engine may think about a short call.
    """

    fleet: str
    url: str
    zones: tuple[str, ...]
    address: str | None = None
    hardened: bool | None = None
    init: bool = True
    network: str = "bridge"
    log_mb: int = 10
    pids_max: int = 4_096
    starting_max: int = 8
    replicas_max: int = 1_000
    call_s: float = CALL_S
    env: dict[str, str] = {}


class _Slot:
    """One replica: what it is, its container once there is one, and the tasks that bring it up and down."""

    def __init__(self, spec: ReplicaSpec, care: Care, state: ReplicaState, since_ms: int) -> None:
        self.spec = spec
        self.care = care
        self.state = state
        self.since_ms = since_ms
        self.container_id = ""
        self.host = ""
        self.port = 0
        self.has_served = False
        self.failure = ""
        self.creating: asyncio.Task[str] | None = None
        self.bring_up: asyncio.Task[None] | None = None
        self.take_down: asyncio.Task[None] | None = None


class DockerRuntime:
    """`ports.Runtime` on one Docker Engine. Use it from one event loop.

    `ensure_image` is called with an image's name before a container is created from it, and returns what to run; it
    is where a zone's cache is asked. Every call that needs the engine raises ReplicaError when that does not answer.
    """

    def __init__(self, settings: DockerSettings, clock: Clock, ensure_image: EnsureImage | None = None) -> None:
        try:
            require_identifier("fleet", settings.fleet)
        except ValueError as error:
            raise ReplicaError(str(error)) from error
        self._settings = settings
        self._clock = clock
        self._ensure_image = ensure_image
        self._engine = DockerEngine(settings.url, clock, ReplicaError, settings.call_s)
        self._containers = FleetContainers(self._engine, settings.fleet)
        self._usages = Usages(self._engine, clock)
        self._definitions = Definitions()
        self._starting = asyncio.Semaphore(settings.starting_max)
        self._slots: dict[str, _Slot] = {}
        self._removed: dict[str, None] = {}
        self._publish_on: str | None = None
        self._looked = False
        self._closed = False

    async def adopt(self) -> int:
        """Find what an earlier runtime left; the number of replicas that run. `list` and `stop` do so by themselves."""
        await self._look()
        return sum(slot.state is not ReplicaState.FAILED for slot in self._slots.values())

    async def define(self, service: ServiceSpec) -> None:
        """Make a revision known. Raises ReplicaError when a container cannot be made of it."""
        if not service.image:
            raise ReplicaError(f"service {service.name} has no image, which containers need; give it one")
        if announces(service):
            raise ReplicaError(
                f"service {service.name}: a program in a container cannot announce its port; let it listen on {{port}}"
            )
        self._definitions.add(service)

    async def start(self, spec: ReplicaSpec) -> None:
        """Begin to start a replica; a second call with its id does nothing. `list` tells when it is ready."""
        if spec.replica_id in self._slots:
            return
        await self._look_once()
        if spec.replica_id in self._slots:
            return
        try:
            require_identifier("replica", spec.replica_id)
        except ValueError as error:
            raise ReplicaError(str(error)) from error
        if self._closed:
            raise ReplicaError(f"{spec.replica_id} cannot be started: the runtime is closed")
        if spec.zone not in self._settings.zones:
            raise ReplicaError(
                f"{spec.replica_id} cannot be started: the engine at {self._settings.url} does not serve {spec.zone}"
            )
        if len(self._slots) >= self._settings.replicas_max:
            raise ReplicaError(f"this engine runs at most {self._settings.replicas_max} replicas; stop some first")
        service = self._definitions.of(spec)
        slot = _Slot(spec, Care.of(service), ReplicaState.STARTING, self._clock.now_ms())
        self._slots[spec.replica_id] = slot
        slot.bring_up = asyncio.create_task(self._bring_up(slot, service), name=f"start {spec.replica_id}")

    async def drain(self, replica_id: str) -> None:
        """Tell the replica that its traffic ends. Unknown ids are ignored."""
        await self._look_once()
        slot = self._slots.get(replica_id)
        if slot is None or slot.state not in {ReplicaState.STARTING, ReplicaState.READY}:
            return
        # One that does not serve yet may die of the signal: `_watch` sends it afterwards.
        if slot.state is ReplicaState.READY:
            await self._tell_draining(slot)
        self._enter(slot, ReplicaState.DRAINING)

    async def stop(self, replica_id: str) -> None:
        """End a replica: asked first, then killed; returns when its container is gone. Unknown ids are ignored."""
        await self._look_once()
        slot = self._slots.get(replica_id)
        if slot is None:
            return
        if slot.take_down is None:
            slot.take_down = asyncio.create_task(self._take_down(slot), name=f"stop {replica_id}")
        await asyncio.shield(slot.take_down)

    async def list(self) -> list[Replica]:
        """All replicas that were started and not stopped, failed ones included: one call, and some for what they use.

        `since_ms` of an adopted replica is when its container was created.
        """
        await self._look()
        await self._usages.refresh([slot.container_id for slot in self._slots.values() if _serves(slot)])
        return [self._seen(slot) for slot in self._slots.values()]

    async def logs(self, replica_id: str, lines: int) -> Sequence[str]:
        """The last lines it wrote, oldest first; empty for unknown ids."""
        await self._look_once()
        slot = self._slots.get(replica_id)
        return await self._containers.log_lines(slot.container_id, lines) if slot else []

    async def close(self) -> None:
        """End everything of this fleet on the engine, all at once, and disconnect."""
        self._closed = True
        try:
            await self._look()
            ends = await asyncio.gather(*(self.stop(name) for name in list(self._slots)), return_exceptions=True)
        finally:
            await self.detach()
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def detach(self) -> None:
        """Disconnect and let the replicas be: the next runtime adopts them. What has no container yet is given up."""
        self._closed = True
        for slot in tuple(self._slots.values()):
            if slot.take_down:
                slot.take_down.cancel()
                await asyncio.wait([slot.take_down])
            await _cut_off(slot)
        await self._engine.close()

    async def _look_once(self) -> None:
        """A runtime that has just begun does not know what it has."""
        if not self._looked:
            await self._look()

    async def _look(self) -> None:
        """Bring what is known in line with what the engine lists."""
        known = {slot.container_id: slot for slot in self._slots.values() if slot.container_id}
        listed = await self._containers.listed()
        # A listing may be older than a removal that has ended meanwhile.
        found = {each.replica_id: each for each in listed if each.container_id not in self._removed}
        gate = asyncio.Semaphore(_ADOPT_PROBES_AT_ONCE)
        await asyncio.gather(*(self._adopt(each, gate) for name, each in found.items() if name not in self._slots))
        self._looked = True
        there = {each.container_id: each for each in found.values()}
        for container_id, slot in known.items():
            if self._slots.get(slot.spec.replica_id) is slot:
                await self._compare(slot, there.get(container_id))

    async def _compare(self, slot: _Slot, found: Found | None) -> None:
        """Follow what happened to a container without us: another loop may look after it, or a person."""
        if slot.take_down or (slot.bring_up and not slot.bring_up.done()):
            return
        if found is None:
            _log.warning("a container is gone", replica=slot.spec.replica_id, engine=self._settings.url)
            del self._slots[slot.spec.replica_id]
        elif slot.state is ReplicaState.FAILED:
            return
        elif found.begun and not found.running:
            self._fail(slot, await self._ended(slot))
        elif found.draining:
            self._enter(slot, ReplicaState.DRAINING)

    async def _adopt(self, found: Found, gate: asyncio.Semaphore) -> None:
        """Know a container that somebody else began. One that serves is ready at once: it may have traffic."""
        state = ReplicaState.DRAINING if found.draining else ReplicaState.STARTING
        slot = _Slot(found.spec, found.care, state, found.created_ms)
        slot.container_id = found.container_id
        async with gate:
            if found.running:
                await self._locate(slot, found)
                slot.has_served = found.draining or await self._probe(slot, _ADOPT_PROBE_S)
                if slot.has_served and not found.draining:
                    slot.state = ReplicaState.READY
        if found.replica_id in self._slots:
            return
        self._slots[found.replica_id] = slot
        if found.begun and not found.running:
            self._fail(slot, await self._ended(slot))
        elif slot.state is ReplicaState.STARTING:
            slot.bring_up = asyncio.create_task(self._bring_up(slot, None), name=f"adopt {found.replica_id}")

    async def _bring_up(self, slot: _Slot, service: ServiceSpec | None) -> None:
        async with self._starting:
            try:
                if service is not None:
                    await self._create(slot, service)
                await self._watch(slot)
            except Exception as error:  # noqa: BLE001 - whatever stops a start is a replica that failed, and says why
                self._fail(slot, str(error))
                with contextlib.suppress(ReplicaError):  # it is killed when it is stopped
                    if slot.container_id:
                        await self._containers.kill(slot.container_id, slot.spec.replica_id)

    async def _create(self, slot: _Slot, service: ServiceSpec) -> None:
        image = await self._ensure_image(service.image) if self._ensure_image else service.image
        settings = self._settings
        hardened = settings.hardened
        limits = Limits(
            publish_on=await self._where_published(),
            hardened=await self._containers.is_built_here(image) if hardened is None else hardened,
            init=settings.init,
            log_mb=settings.log_mb,
            pids_max=settings.pids_max,
            network=settings.network,
        )
        env = {**settings.env, **service.env, **read_secrets(service.secrets)}
        body = container_body(settings.fleet, slot.spec, service, image, env, limits)
        # Cut off, it would be unknown whether a container comes of it: whoever ends this waits for that.
        slot.creating = asyncio.create_task(self._containers.create(slot.spec.replica_id, body))
        slot.container_id = await asyncio.shield(slot.creating)

    async def _watch(self, slot: _Slot) -> None:
        """Start the container and wait until it is well. Raises ReplicaError when that does not come."""
        await self._containers.begin(slot.container_id, slot.spec.replica_id)
        until = self._clock.monotonic_s() + slot.care.start_ms_max / 1000
        probes = 0
        while self._clock.monotonic_s() < until:
            if probes % _PROBES_PER_LOOK == 0:
                found = await self._containers.listed(slot.container_id)
                if not found or not found[0].running:
                    raise ReplicaError(await self._ended(slot))
                await self._locate(slot, found[0])
            probes += 1
            if await self._probe(slot, slot.care.health.timeout_ms / 1000):
                slot.has_served = True
                # A drain that came meanwhile stays in force, and is passed on now.
                if slot.state is ReplicaState.DRAINING:
                    return await self._tell_draining(slot)
                return self._enter(slot, ReplicaState.READY)
            await self._clock.sleep(_POLL_S)
        what = f"replica {slot.spec.replica_id} was not ready within {slot.care.start_ms_max / 1000:g} s"
        raise ReplicaError(await self._containers.with_log(what, slot.container_id, slot.care.secrets))

    async def _locate(self, slot: _Slot, found: Found) -> None:
        """Note where the replica is reached."""
        if await self._where_published():
            slot.host, slot.port = self._settings.address or _LOCAL, found.published_port
        else:
            slot.host, slot.port = found.ip, found.care.port

    async def _probe(self, slot: _Slot, timeout_s: float) -> bool:
        if not (slot.host and slot.port):
            return False
        try:
            status, _ = await http_get(self._clock, slot.host, slot.port, slot.care.health.path, timeout_s)
        except OSError:
            return False
        return status == 200  # noqa: PLR2004 - the status that HTTP names OK

    async def _where_published(self) -> str:
        """The address of the engine's machine that ports are published on; "" where containers are reached directly.

        A published port costs a process and a part of the start, so a local engine's containers are asked themselves.
        """
        if self._publish_on is None:
            address = self._settings.address
            if address is None:
                self._publish_on = "" if await self._engine.reaches_containers() else _LOCAL
            else:
                self._publish_on = address if _is_ipv4(address) else "0.0.0.0"  # noqa: S104 - a name may be any of its addresses
        return self._publish_on

    async def _tell_draining(self, slot: _Slot) -> None:
        await self._containers.mark_draining(slot.container_id, slot.spec.replica_id, slot.care.drain_signal)

    async def _take_down(self, slot: _Slot) -> None:
        name = slot.spec.replica_id
        try:
            await _cut_off(slot)
            failed = slot.state is ReplicaState.FAILED
            if not failed:
                self._enter(slot, ReplicaState.DRAINING)
            # A creation that was cut off may have left a container that we have no id of.
            listed = await self._containers.listed()
            for container_id in {each.container_id for each in listed if each.replica_id == name}:
                if not failed:
                    await self._containers.stop(container_id, name, slot.care.stop_grace_ms)
                await self._containers.remove(container_id, name)
                self._note_removed(container_id)
            self._usages.forget(slot.container_id)
            del self._slots[name]
        finally:
            slot.take_down = None

    def _note_removed(self, container_id: str) -> None:
        while len(self._removed) >= _REMOVED_MAX:
            del self._removed[next(iter(self._removed))]
        self._removed[container_id] = None

    async def _ended(self, slot: _Slot) -> str:
        how = await self._containers.ending(slot.container_id, slot.care.memory_mb)
        what = f"replica {slot.spec.replica_id} {how}"
        return await self._containers.with_log(what, slot.container_id, slot.care.secrets)

    def _seen(self, slot: _Slot) -> Replica:
        usage = self._usages.of(slot.container_id)
        return Replica(
            replica_id=slot.spec.replica_id,
            zone=slot.spec.zone,
            node_id=slot.spec.node_id,
            state=slot.state,
            host=slot.host,
            # Until it is well, a container's port is a promise only.
            port=slot.port if slot.has_served else 0,
            since_ms=slot.since_ms,
            cpu_s=usage.cpu_s,
            memory_bytes=usage.memory_bytes if _serves(slot) else 0,
            service=slot.spec.service,
            revision=slot.spec.revision,
            failure=slot.failure,
        )

    def _fail(self, slot: _Slot, why: str) -> None:
        if slot.state is not ReplicaState.FAILED and slot.take_down is None:
            slot.failure = why
            self._enter(slot, ReplicaState.FAILED)

    def _enter(self, slot: _Slot, state: ReplicaState) -> None:
        if slot.state is not state:
            slot.state, slot.since_ms = state, self._clock.now_ms()


async def _cut_off(slot: _Slot) -> None:
    """End what brings a replica up; a creation that is under way is waited for."""
    if slot.bring_up:
        slot.bring_up.cancel()
        await asyncio.wait([slot.bring_up])
    if slot.creating:
        await asyncio.wait([slot.creating])
        slot.creating.exception()  # what there is to say of it has been said


def _serves(slot: _Slot) -> bool:
    return bool(slot.container_id) and slot.state in {ReplicaState.READY, ReplicaState.DRAINING}


def _is_ipv4(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 4  # noqa: PLR2004 - the version of IP
    except ValueError:
        return False
