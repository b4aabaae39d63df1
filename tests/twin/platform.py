"""Several services on ports in memory, under control loops that can be cut off at any call of a port."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet import MemoryBalancer, MemoryCloud, MemoryRuntime
from springtide.drivers.memory.fleet_state import MemoryFleetState
from springtide.fleet.journal import Entry, Journal, read_journal
from springtide.fleet.loop import ControlLoop, LoopSettings
from springtide.fleet.ports import FleetPorts
from springtide.model import (
    FleetPolicy,
    NodeState,
    Replica,
    ReplicaState,
    ServiceSpec,
    ServiceWish,
    Zone,
    ZoneKind,
)

ZONES = (
    Zone("idc-a", ZoneKind.IDC, nodes_max=1, cores_per_node=4),
    Zone("idc-b", ZoneKind.IDC, nodes_max=1, cores_per_node=4),
    Zone("cloud-h", ZoneKind.CLOUD, nodes_max=6, cores_per_node=4, lead_ms=2000, price_fen_per_node_h=82),
)
POLICY = FleetPolicy(
    replica_requests_per_s=100,
    replica_cores=1,
    headroom=0.25,
    base_replicas=1,
    patience_ms=4000,
    drain_ms=1000,
    start_ms=1000,
    actions_max=8,
    starting_max=4,
    stale_ms=1500,
    rollout_surge=1,
)
TICK_MS = 500
LEASE_MS = 2_000
WRITES = ("set_endpoints", "start", "drain", "stop", "rent", "release", "begin", "end", "remember", "lead")


def wish(service: str, revision: str = "v1", cores: float = 1.0, **fields: Any) -> ServiceWish:
    spec = ServiceSpec(service, revision, ("serve",), cores=cores)
    return ServiceWish(spec, **{"requests_per_s": 100.0, "replicas_min": 2, "drain_ms": 1000, **fields})


class Life:
    """One loop's: every call of a port is counted, and the one at which it ends is the last that has an effect."""

    def __init__(self, ends_at: Callable[[int, str, str], bool] = lambda *_: False) -> None:
        """`ends_at` is asked with the number of the call, its name, and `before` or `after`."""
        self._ends_at = ends_at
        self.calls: list[str] = []
        self.over = False

    async def pass_on(self, name: str, method: Callable[..., Any], *arguments: Any) -> Any:
        if not self.over:
            self.calls.append(f"{name} {arguments[1]}" if name == "remember" else name)
        number = len(self.calls) - 1
        await self._go_on(number, "before")
        try:
            return await method(*arguments)
        finally:
            await self._go_on(number, "after")

    async def _go_on(self, number: int, moment: str) -> None:
        self.over = self.over or self._ends_at(number, self.calls[number], moment)
        if self.over:
            await asyncio.get_running_loop().create_future()  # nobody will ever answer


class Mortal:
    """A port that one loop uses: the other side lives on when the loop does not."""

    def __init__(self, port: Any, life: Life) -> None:
        self._port = port
        self._life = life

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)

        async def call(*arguments: Any) -> Any:
            return await self._life.pass_on(name, method, *arguments)

        return call


class Platform:
    """The world: a runtime for each zone, a balancer for each service, a cloud, the shared state, and its loops."""

    def __init__(self, folder: Path, demands: Mapping[str, Callable[[float], float]], **settings: Any) -> None:
        self.clock = VirtualClock()
        self.folder = folder
        self.settings = settings
        self.state = MemoryFleetState(self.clock)
        self.runtimes = {
            zone.name: MemoryRuntime(self.clock, start_s=1.0, cpu_share=0.25, host=f"127.0.0.{number}")
            for number, zone in enumerate(ZONES, 1)
        }
        self.cloud = MemoryCloud(self.clock, ZONES)
        self.cut_off: set[str] = set()
        self.balancers = {name: self._balancer(demand) for name, demand in demands.items()}
        self.loops: list[tuple[ControlLoop, Life, Journal, asyncio.Task[None]]] = []

    def _balancer(self, demand: Callable[[float], float]) -> MemoryBalancer:
        start_ms = self.clock.now_ms()
        return MemoryBalancer(lambda now_ms: demand((now_ms - start_ms) / 1000), self.is_up)

    def is_up(self, name: str) -> bool:
        ups = {ReplicaState.READY, ReplicaState.DRAINING}
        return name not in self.cut_off and any(r.replica_id == name and r.state in ups for r in self.replicas())

    def begin(self, life: Life | None = None, **ports: Any) -> ControlLoop:
        """Start another loop; what a loop defined is gone with its process."""
        life = life or Life()
        run_id = f"r{len(self.loops)}"
        for runtime in self.runtimes.values():
            if all(life.over for _, life, _, _ in self.loops):
                runtime.defined.clear()
        given: dict[str, Any] = {
            "runtimes": {zone: Mortal(runtime, life) for zone, runtime in self.runtimes.items()},
            "balancers": {name: Mortal(balancer, life) for name, balancer in self.balancers.items()},
            "cloud": Mortal(self.cloud, life),
            "state": Mortal(self.state, life),
        }
        settings = LoopSettings(run_id, ZONES, POLICY, (), TICK_MS, lease_ms=LEASE_MS)
        settings = msgspec.structs.replace(settings, **self.settings)
        journal = Journal(self.folder / f"{run_id}.jsonl")
        loop = ControlLoop(self.clock, FleetPorts(**(given | ports)), settings, journal)
        self.loops.append((loop, life, journal, asyncio.create_task(loop.run())))
        return loop

    async def until(self, second: float) -> None:
        await self.clock.advance(second - self.clock.monotonic_s())

    def replicas(self, service: str = "", zone: str = "") -> list[Replica]:
        return [
            replica
            for runtime in self.runtimes.values()
            for replica in runtime.replicas()
            if replica.service.startswith(service) and replica.zone.startswith(zone)
        ]

    def serving(self, service: str) -> int:
        return sum(one.weight > 0 and self.is_up(one.replica_id) for one in self.balancers[service].endpoints)

    async def ready_nodes(self) -> int:
        return sum(node.state is NodeState.READY for node in await self.cloud.nodes())

    def entries(self, loop: int = 0) -> list[Entry]:
        return list(read_journal(self.folder / f"r{loop}.jsonl"))

    async def close(self) -> None:
        """End all loops without another word to anybody."""
        for loop, life, journal, task in self.loops:
            life.over = True
            loop.stop()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            journal.close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
