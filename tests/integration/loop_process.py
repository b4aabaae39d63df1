"""A control loop as a process of its own, to be killed: `python loop_process.py DSN FOLDER RUN_ID`.

Its replicas are processes that outlive it, its cloud is a file in FOLDER, its state is in PostgreSQL. The balancer is a
list in a file, which asks each replica whether it is ready. It prints `leads` when it leads.
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from springtide.drivers.http_get import http_get
from springtide.drivers.localcloud import LocalCloud
from springtide.drivers.postgres_fleet import PostgresFleetState
from springtide.drivers.process import ProcessRuntime, ProcessSettings
from springtide.drivers.system import SystemClock, chance
from springtide.fleet.journal import Journal
from springtide.fleet.loop import ControlLoop, LoopSettings
from springtide.fleet.ports import FleetPorts
from springtide.model import Endpoint, FleetPolicy, TrafficSample, Zone, ZoneKind

LEASE_MS = 900
TICK_MS = 150
ZONES = (
    Zone("idc-a", ZoneKind.IDC, nodes_max=1, cores_per_node=2),
    Zone("idc-b", ZoneKind.IDC, nodes_max=1, cores_per_node=2),
    Zone("cloud-h", ZoneKind.CLOUD, nodes_max=3, cores_per_node=2, lead_ms=200, price_fen_per_node_h=82),
)
POLICY = FleetPolicy(
    replica_requests_per_s=100,
    replica_cores=1,
    headroom=0.25,
    base_replicas=1,
    patience_ms=300,
    drain_ms=200,
    start_ms=1000,
    actions_max=8,
    starting_max=4,
    stale_ms=3 * TICK_MS,
    rollout_surge=2,
)


class FileBalancer:
    """`ports.Balancer` whose list is a file: it outlives the loop."""

    def __init__(self, path: Path, clock: SystemClock) -> None:
        self._path = path
        self._clock = clock

    def read(self) -> tuple[Endpoint, ...]:
        if not self._path.exists():
            return ()
        return msgspec.json.decode(self._path.read_bytes(), type=tuple[Endpoint, ...])

    async def set_endpoints(self, endpoints: Sequence[Endpoint]) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(tuple(endpoints)))
        fresh.replace(self._path)

    async def sample(self, now_ms: int) -> TrafficSample:
        return TrafficSample(now_ms, 50.0)

    async def healthy(self) -> frozenset[str]:
        async def well(endpoint: Endpoint) -> str:
            try:
                status, _ = await http_get(self._clock, endpoint.host, endpoint.port, "/readyz", 1.0)
            except OSError:
                return ""
            return endpoint.replica_id if status == 200 else ""

        return frozenset(filter(None, await asyncio.gather(*map(well, self.read()))))


def process_runtime(folder: Path, clock: SystemClock) -> ProcessRuntime:
    return ProcessRuntime(folder / "replicas", clock, ProcessSettings(die_with_parent=False))


def local_cloud(folder: Path, clock: SystemClock) -> LocalCloud:
    return LocalCloud(folder / "cloud.json", clock, chance(1), ZONES)


async def main(dsn: str, folder: Path, run_id: str) -> None:
    structlog.configure(logger_factory=structlog.WriteLoggerFactory((folder / "loop.log").open("a")))
    clock = SystemClock()
    runtime = process_runtime(folder, clock)
    await runtime.adopt()
    ports = FleetPorts(
        runtimes={zone.name: runtime for zone in ZONES},
        balancers={"web": FileBalancer(folder / "endpoints.json", clock)},
        cloud=local_cloud(folder, clock),
        state=await PostgresFleetState.connect(dsn, clock),
    )
    settings = LoopSettings(run_id, ZONES, POLICY, (), TICK_MS, lease_ms=LEASE_MS)
    loop = ControlLoop(clock, ports, settings, Journal(folder / f"{run_id}.jsonl"))
    ticking = asyncio.create_task(loop.run())
    while not loop.leads:
        await clock.sleep(0.01)
    print("leads", flush=True)
    await ticking


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
