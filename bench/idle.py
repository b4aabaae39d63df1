"""Memory of a counter with many idle keep-alive connections. Each has been served once."""

import asyncio
import resource
import secrets
from pathlib import Path

from bench import engines, processes
from bench.rows import Row, Skipped, median_row

CONNECTIONS = 9_900
"""Up to the counter's own limit of 10,000, with some room for whoever looks at it."""

MB_MAX = 150.0
AT_ONCE = 200
FILES_SPARE = 200
_GET = b"GET /v1/sales/bench HTTP/1.1\r\nHost: bench\r\n\r\n"


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench. What a process holds hardly varies, so three runs say as much as more."""
    connections = _possible()
    figures = [asyncio.run(_one_run(connections)) for _ in range(min(runs, 3))]
    per_10_000 = [before + (idle - before) / connections * 10_000 for before, idle in figures]
    rows = [
        median_row("counter with 10,000 idle connections", "MB resident", per_10_000, ceiling=MB_MAX),
        median_row("counter without", "MB resident", [before for before, _ in figures]),
        median_row(
            "one idle connection", "bytes resident", [(idle - before) / connections * 1e6 for before, idle in figures]
        ),
        Row("connections in these runs", float(connections), "connections"),
    ]
    return rows, []


def _possible() -> int:
    """As many as the limit of open files allows, which the counter's process inherits."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + FILES_SPARE
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit - FILES_SPARE


async def _one_run(connections: int) -> tuple[float, float]:
    """Resident MB before the first connection, and with all of them idle."""
    server_cpu, other_cpu = processes.cores()
    async with engines.store(other_cpu) as store:
        with processes.counter(store.port, secrets.token_hex(32), server_cpu) as (pid, port):
            await _served_once(port)
            before = resident_mb(pid)
            open_ones = []
            for at in range(0, connections, AT_ONCE):
                count = min(AT_ONCE, connections - at)
                open_ones += await asyncio.gather(*(_served_once(port) for _ in range(count)))
            await asyncio.sleep(0.5)
            idle = resident_mb(pid)
            for writer in open_ones:
                writer.transport.abort()
    return before, idle


async def _served_once(port: int) -> asyncio.StreamWriter:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_GET)
    answer = await reader.readuntil(b"\r\n\r\n")
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the counter should serve each connection, but said: {answer!r}")
    return writer


def resident_mb(pid: int) -> float:
    """Resident memory in 10^6 bytes (proc(5): the second field of statm, in pages)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
