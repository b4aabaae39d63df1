"""100,000 vCPU through the official SDK: 3,125 machines of 32 vCPU rented, all running, and given back.

The cloud is the served one, in a process of its own, with the limits on calls that the real one has (creations a
minute, calls a minute per API, 100 machines a call) and the real clock. Its machines boot faster than real ones: that
is waiting and no work.

The least number of calls is what the API's page sizes force: RunInstances and DeleteInstances for each 100 machines;
for each look, DescribeInstances for each 100 machines that are looked at; for each list, ListTagResources for each 50.
"""

import asyncio
import json
import math
import secrets
import time
from collections.abc import Mapping
from typing import Any

from bench import processes
from bench.rows import Row, Skipped, median_row
from springtide.drivers.alibaba import AlibabaCloud
from springtide.drivers.alibaba_settings import AccessKeys, AlibabaSettings, AlibabaZone, MachineType
from springtide.drivers.system import SystemClock
from springtide.errors import CloudThrottled
from springtide.model import NodeOrder, NodeState
from springtide.twin.market_settings import ZONES

TYPE = "ecs.c7.8xlarge"
COUNTS = (600, 600, 600, 600, 600, 125)
"""By zone; in full batches but for one, as 100,000 vCPU in one zone would be."""

BOOT_S, BOOT_P99_S = 20, 40
STOCK = 700
RATIO_MAX = 1.2
LOOK_S = 1.0
LOOKS_MAX = 300
PAGE, LIST_PAGE = 100, 50


class Figures:
    """Of one run."""

    def __init__(self) -> None:
        self.bought_s = 0.0
        self.running_s = 0.0
        self.released_s = 0.0
        self.cpu_s = 0.0
        self.running = 0
        self.left = 0
        self.looked_at = 0
        self.looks_least = 0
        self.calls: dict[str, int] = {}
        self.throttled = 0
        self.throttled_again = 0
        self.blocked_ms = 0.0


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench. A run takes a minute and a half, most of it waiting for machines; two say enough."""
    figures = [asyncio.run(_one_run()) for _ in range(min(runs, 2))]
    nodes = sum(COUNTS)
    least_run = sum(math.ceil(count / PAGE) for count in COUNTS)
    least_all = [2 * least_run + each.looks_least for each in figures]
    calls = [sum(each.calls.values()) - each.calls.get("DescribePrice", 0) for each in figures]
    rows = [
        median_row(f"machines running of {nodes:,}", "machines", [float(each.running) for each in figures]),
        median_row("machines left at the end", "machines", [float(each.left) for each in figures], ceiling=0),
        median_row(
            f"purchase calls / the {least_run} that it takes",
            "ratio",
            [each.calls["RunInstances"] / least_run for each in figures],
            ceiling=RATIO_MAX,
        ),
        median_row(
            "all calls / the least",
            "ratio",
            [sent / least for sent, least in zip(calls, least_all, strict=True)],
            ceiling=RATIO_MAX,
        ),
        median_row("all calls", "calls", [float(sent) for sent in calls]),
        Row("buy, see all run once, give back", 3.0 * math.ceil(nodes / PAGE), "calls"),
        median_row("throttle errors", "errors", [float(each.throttled) for each in figures]),
        median_row(
            "throttle errors that repeat", "errors", [float(each.throttled_again) for each in figures], ceiling=0
        ),
        median_row("until all were bought", "s", [each.bought_s for each in figures]),
        median_row(f"until all ran (boots of {BOOT_S} s)", "s", [each.running_s for each in figures]),
        median_row("until all were given back", "s", [each.released_s for each in figures]),
        median_row("CPU of the driver's process", "s", [each.cpu_s for each in figures]),
        median_row("CPU a call", "ms", [1000 * f.cpu_s / sent for f, sent in zip(figures, calls, strict=True)]),
        median_row("longest time that the event loop was held", "ms", [each.blocked_ms for each in figures]),
    ]
    return rows, []


async def _one_run() -> Figures:
    server_cpu, _ = processes.cores()
    key_id, secret = "LTAIbench", secrets.token_hex(16)
    arguments = (key_id, secret, str(STOCK), str(BOOT_S), str(BOOT_P99_S))
    with processes.python("bench.cloud_rent_server", *arguments, cpu=server_cpu) as (_, port):
        cloud = AlibabaCloud(_settings(f"127.0.0.1:{port}"), SystemClock(), AccessKeys(key_id, secret))
        try:
            return await _rent_run_release(cloud)
        finally:
            await cloud.close()


def _settings(endpoint: str) -> AlibabaSettings:
    return AlibabaSettings(
        region="cn-beijing",
        installation="bench",
        zones={zone: AlibabaZone(f"vsw-{zone}") for zone in ZONES},
        types=(MachineType(TYPE, 32, 65_536),),
        image_id="debian_12_x64",
        security_group_id="sg-bench",
        ecs_endpoint=endpoint,
        protocol="http",
    )


async def _rent_run_release(cloud: AlibabaCloud) -> Figures:
    figures = Figures()
    await cloud.nodes()  # the SDK is loaded, and the list is known to be empty
    watch = asyncio.create_task(_watch(figures))
    _count_looks(cloud, figures)
    cpu_s, begin_s = time.process_time(), time.monotonic()
    await asyncio.gather(*(_rent(cloud, zone, count) for zone, count in zip(ZONES, COUNTS, strict=True)))
    figures.bought_s = time.monotonic() - begin_s
    names = await _until_running(cloud, figures)
    figures.running_s = time.monotonic() - begin_s
    release_s = time.monotonic()
    await cloud.release(names)
    figures.released_s = time.monotonic() - release_s
    figures.left = len(await cloud.nodes())
    figures.cpu_s = time.process_time() - cpu_s
    watch.cancel()
    figures.calls = dict(cloud.calls.sent)
    figures.throttled = sum(cloud.calls.throttled.values())
    figures.throttled_again = sum(max(0, count - 1) for count in cloud.calls.throttled.values())
    return figures


async def _rent(cloud: AlibabaCloud, zone: str, count: int) -> None:
    """What a fleet does: the same order again when it was throttled."""
    order = NodeOrder(zone, count, f"bench-{zone}", TYPE)
    while True:
        try:
            rented = await cloud.rent(order)
        except CloudThrottled as throttled:
            await asyncio.sleep(throttled.retry_after_s)
        else:
            if len(rented) != count:
                raise RuntimeError(f"{zone} delivered {len(rented)} of {count} machines, though it has {STOCK}")
            return


def _count_looks(cloud: AlibabaCloud, figures: Figures) -> None:
    send = cloud.calls.ecs

    async def counted(api: str, query: Mapping[str, object]) -> dict[str, Any]:
        if api == "DescribeInstances":
            figures.looked_at += len(json.loads(str(query["InstanceIds"])))
        return await send(api, query)

    cloud.calls.ecs = counted  # type: ignore[method-assign] # the query itself tells how much it asks for


async def _until_running(cloud: AlibabaCloud, figures: Figures) -> list[str]:
    """Look once a second until all run; counts the least calls that the looks can take."""
    for _ in range(LOOKS_MAX):
        await asyncio.sleep(LOOK_S)
        listed, looked_at = cloud.calls.sent["ListTagResources"], figures.looked_at
        nodes = await cloud.nodes()
        figures.looks_least += math.ceil((figures.looked_at - looked_at) / PAGE)
        if cloud.calls.sent["ListTagResources"] > listed:
            figures.looks_least += math.ceil(len(nodes) / LIST_PAGE)
        figures.running = sum(node.state is NodeState.READY for node in nodes)
        if figures.running == sum(COUNTS):
            return [node.node_id for node in nodes]
    raise RuntimeError(f"{sum(COUNTS) - figures.running} machines do not run after {LOOKS_MAX} looks")


async def _watch(figures: Figures) -> None:
    """How late a task of the loop is at the worst."""
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.002)
        figures.blocked_ms = max(figures.blocked_ms, 1000 * (time.monotonic() - began) - 2)
