"""What a load balancer costs: proxied requests for each CPU second of HAProxy and of Envoy, as the drivers set them up.

Each engine has one core for itself; four replicas (HAProxy answering a constant, so that they cost little) and the load
share the other. Both have active checks, ejection, bounded queues and repeats as a service has them by default.
"""

import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from bench import processes
from bench.load import Job, Outcome
from bench.rows import Row, Skipped, compared, median_row
from springtide.drivers.balanced_service import BalancedService
from springtide.drivers.balancers import BalancerEngine, start_balancer
from springtide.drivers.haproxy_api import RuntimeApi
from springtide.drivers.system import SystemClock
from springtide.model import Endpoint, HealthCheck

CONNECTIONS = 64
SECONDS = 4.0
REPLICAS = 4
REQUESTS = 250_000
SERVICE = BalancedService("shop", health=HealthCheck(path="/"), idempotent=True, slow_start_ms=0)
CLOCK = SystemClock()

Kind = Literal["haproxy", "envoy"]


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench."""
    if not processes.has_haproxy():
        return [], [Skipped("HAProxy and Envoy", "HAProxy is not installed: apt-get install haproxy")]
    measured: dict[Kind, list[Outcome]] = {"haproxy": [], "envoy": []}
    for _ in range(runs):
        for kind, outcomes in measured.items():
            outcomes.append(asyncio.run(_one_run(kind)))
    haproxy, envoy = (
        median_row(f"{kind}: proxied", "requests/CPU s", [each.per_cpu_s for each in outcomes])
        for kind, outcomes in measured.items()
    )
    p99 = [
        median_row(f"{kind}: 99th percentile", "ms", [each.p99_ms for each in outcomes])
        for kind, outcomes in measured.items()
    ]
    return [compared(haproxy, envoy, None), envoy, *p99], []


async def _one_run(kind: Kind) -> Outcome:
    for_engine, for_rest = processes.cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        ports = [stack.enter_context(processes.haproxy(for_rest))[1] for _ in range(REPLICAS)]
        engine = await start_balancer(kind, folder, CLOCK, [SERVICE])
        try:
            pid = await _worker(engine, folder)
            processes.pin(pid, for_engine)
            balancer = engine.balancer("shop")
            await balancer.set_endpoints(
                [Endpoint(f"r{at}", "z", "127.0.0.1", port, 1) for at, port in enumerate(ports)]
            )
            job = Job(
                host="127.0.0.1",
                port=engine.port("shop"),
                sale="s",
                sku="k",
                buyers="b",
                token_key="00" * 32,
                connections=CONNECTIONS,
                requests=REQUESTS,
                seconds=SECONDS,
                pids=(pid,),
                expect="200",
                cpu=for_rest,
            )
            outcome = processes.load(job)
            if outcome.other:
                raise RuntimeError(f"{kind}: {outcome.other} requests were not answered 200: {outcome.first_other}")
            return outcome
        finally:
            await engine.stop()


async def _worker(engine: BalancerEngine, folder: Path) -> int:
    """The process that does the work."""
    if engine.name == "haproxy":
        return await RuntimeApi(folder / "haproxy" / "api.sock", CLOCK).pid()
    if engine.process is None:
        raise RuntimeError("Envoy does not run")
    return engine.process.pid
