"""The clouds that the contract suite runs on, each with its own time and two zones of the same make."""

import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from springtide.drivers.alibaba import AlibabaCloud
from springtide.drivers.alibaba_settings import AccessKeys, AlibabaSettings, AlibabaZone, EciSettings, MachineType
from springtide.drivers.localcloud import LocalCloud
from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet import MemoryCloud
from springtide.drivers.system import SystemClock, SystemIds
from springtide.model import Market, Offer, Zone, ZoneKind
from springtide.ports import Clock, Cloud
from springtide.twin.cloud_api import ServedCloud, ServedOptions, Sources
from springtide.twin.kernel import Kernel
from springtide.twin.market import MarketSettings

H = Zone("cloud-h", ZoneKind.CLOUD, nodes_max=5, cores_per_node=8, lead_ms=10_000, price_fen_per_node_h=360)
S = Zone("cloud-s", ZoneKind.CLOUD, nodes_max=3, cores_per_node=4, lead_ms=20_000, price_fen_per_node_h=720)
IDC = Zone("idc-a", ZoneKind.IDC, nodes_max=9, cores_per_node=8)
ZONES = (IDC, H, S)

REAL, SETTINGS = "SPRINGTIDE_TEST_ALIBABA", "SPRINGTIDE_TEST_ALIBABA_SETTINGS"
"""The real account is used, and paid, only when both say so: "1", and a JSON file of AlibabaSettings."""


@dataclass
class Case:
    """A cloud under test. `reopen` is the cloud as another process finds it."""

    cloud: Cloud
    clock: Clock
    advance: Callable[[float], Awaitable[None]]
    reopen: Callable[[], Cloud]

    def minute_ms(self, seconds: float) -> int:
        """A moment about so far ahead, on a full minute: clouds round to it."""
        return -(-(self.clock.now_ms() + round(seconds * 1000)) // 60_000) * 60_000


class KernelClock(SystemClock):
    """The moment is the served cloud's; waiting is real."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def now_ms(self) -> int:
        return self._kernel.now_ms

    def monotonic_s(self) -> float:
        return self._kernel.now_ms / 1000


def machine(zone: Zone, market: Market = Market.ON_DEMAND, stock: int | None = None) -> Offer:
    """What is for rent in a zone of the served cloud: the machine that the zone has elsewhere."""
    return Offer(
        zone.name,
        f"ecs.{zone.name}",
        market,
        zone.cores_per_node,
        zone.cores_per_node * 2048,
        zone.price_fen_per_node_h,
        stock=zone.nodes_max if stock is None else stock,
        boot_ms=(zone.lead_ms, zone.lead_ms * 12 // 10),
    )


def settings_for(offers: tuple[Offer, ...], endpoint: str, region: str) -> AlibabaSettings:
    """The driver's settings for a served cloud with these offers, one type a zone by default."""
    types: dict[str, MachineType] = {}
    for offer in offers:
        known = types.get(offer.instance_type)
        markets = (*known.markets, offer.market) if known else (offer.market,)
        types[offer.instance_type] = MachineType(
            offer.instance_type, offer.cores, offer.memory_mb, markets=tuple(dict.fromkeys(markets))
        )
    zones = {
        name: AlibabaZone(
            vswitch_id=f"vsw-{name}", instance_type=next(o.instance_type for o in offers if o.zone == name)
        )
        for name in dict.fromkeys(offer.zone for offer in offers)
    }
    return AlibabaSettings(
        region=region,
        installation="contract",
        zones=zones,
        types=tuple(types.values()),
        image_id="debian_12_x64",
        security_group_id="sg-contract",
        eci=EciSettings(image="registry:5000/shop:1"),
        ecs_endpoint=endpoint,
        eci_endpoint=endpoint,
        protocol="http",
        first_look_s=1.0,
        list_s=5.0,
    )


@asynccontextmanager
async def served(
    offers: tuple[Offer, ...], settings: MarketSettings | None = None
) -> AsyncGenerator[tuple[ServedCloud, KernelClock, Callable[[], AlibabaCloud]], None]:
    """A served cloud, its clock, and the driver on it as each new process begins with it."""
    market = settings or MarketSettings(refill_share_per_h=0.0)
    options = ServedOptions(market=msgspec.structs.replace(market, offers=offers))
    opened: list[AlibabaCloud] = []
    async with ServedCloud(Sources(SystemClock(), SystemIds(), random.Random(7)), options) as cloud:
        clock = KernelClock(cloud.market.kernel)
        keys = AccessKeys(cloud.keys.access_key_id, cloud.keys.access_key_secret)
        driver = settings_for(offers, cloud.endpoint, cloud.market.settings.region)

        def reopen() -> AlibabaCloud:
            opened.append(AlibabaCloud(driver, clock, keys))
            return opened[-1]

        try:
            yield cloud, clock, reopen
        finally:
            for each in opened:
                await each.close()


def local(folder: Path, clock: VirtualClock) -> Callable[[], LocalCloud]:
    """The local cloud as a loop finds it when it starts."""
    return lambda: LocalCloud(folder / "cloud.json", clock, random.Random(7), ZONES)


@asynccontextmanager
async def case_of(name: str, folder: Path) -> AsyncGenerator[Case, None]:
    """The cloud of this name, ready for a test."""
    if name == "served":
        async with served((machine(H), machine(S))) as (world, clock, reopen):

            async def pass_time(seconds: float) -> None:
                world.market.kernel.run(world.market.kernel.now_ms + round(seconds * 1000))

            yield Case(reopen(), clock, pass_time, reopen)
        return
    virtual = VirtualClock()
    if name == "memory":
        memory = MemoryCloud(virtual, ZONES)
        yield Case(memory, virtual, virtual.advance, lambda: memory)
    else:
        yield Case(local(folder, virtual)(), virtual, virtual.advance, local(folder, virtual))


def real_settings() -> AlibabaSettings:
    """The settings for the real account; skips the test unless somebody wants to pay for it."""
    for variable in ("ALIBABA_CLOUD_ACCESS_KEY_ID", REAL, SETTINGS):
        if not os.environ.get(variable):
            pytest.skip(f"{variable} is not set: the real cloud costs money, and is used by those who ask for it only")
    return msgspec.json.decode(Path(os.environ[SETTINGS]).read_bytes(), type=AlibabaSettings)
