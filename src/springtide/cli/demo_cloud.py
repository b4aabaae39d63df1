"""The cloud of a demo: served on this machine over the HTTP API of ECS, and rented from by the real driver.

A configuration for Alibaba Cloud is carried out against a process here, so a demo never spends money.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from springtide.cli.cloud_keys import read_keys
from springtide.cli.clouds import open_cloud
from springtide.cli.world import Folders
from springtide.config import Config
from springtide.drivers.child import spawn
from springtide.drivers.localcloud import LocalCloud
from springtide.drivers.system import SystemClock, chance
from springtide.errors import UserError
from springtide.model import FEN_PER_CNY, Market, Offer, Zone, ZoneKind
from springtide.ports import Cloud
from springtide.twin.market_settings import default_offers
from springtide.twin.simulation.demo_model import BOOT_P99, STOCK_SHARE

SEED = 7
START_S = 20.0
STOP_S = 5.0
POLL_S = 0.05

FEN_PER_CORE_H = 20.4
"""The price of a type that has none in the configuration or the twin's catalogue: that of c7 (0.816 CNY for 4 vCPU)."""

SPOT_SHARE = 0.3
"""What spot costs of the price on demand, of such a type."""

_MB_PER_GB = 1024


@dataclass(frozen=True)
class DemoCloud:
    """What nodes are rented from.

    `calls` of its API that were sent so far, and those of them that were too many; a cloud without an API has none.
    """

    cloud: Cloud
    calls: Mapping[str, int] = field(default_factory=dict)
    throttled: Mapping[str, int] = field(default_factory=dict)
    again: Callable[[], Cloud] | None = None

    async def left(self) -> int:
        """How many nodes are rented: asked anew by their tag, not of a driver that remembers."""
        if self.again is None:
            return len(await self.cloud.nodes())
        fresh = self.again()
        try:
            return len(await fresh.nodes())
        finally:
            await fresh.close()


async def start_cloud(
    stack: AsyncExitStack, folders: Folders, clock: SystemClock, config: Config, zones: Sequence[Zone]
) -> DemoCloud:
    """Start it, where anything may be rented. Raises EngineError when it does not serve, CloudError."""
    if config.cloud.driver == "local" or not any(zone.kind is ZoneKind.CLOUD for zone in zones):
        return DemoCloud(LocalCloud(folders.run / "cloud.json", clock, chance(SEED), zones))
    from springtide.drivers.alibaba import AlibabaCloud  # noqa: PLC0415 - the SDK takes half a second to import

    endpoint, keys = await _serve(stack, folders, clock, config)
    settings = msgspec.structs.replace(
        config.cloud, ecs_endpoint=endpoint, eci_endpoint=endpoint, protocol="http", credentials=str(keys)
    )
    served = msgspec.structs.replace(config, cloud=settings)
    cloud = open_cloud(served, clock, folders.run)
    assert isinstance(cloud, AlibabaCloud)  # noqa: S101 - the driver is alibaba
    stack.push_async_callback(cloud.close)
    # The first call loads the SDK: before the sale, not in it.
    await cloud.nodes()
    await cloud.offers()
    return DemoCloud(cloud, cloud.calls.sent, cloud.calls.throttled, lambda: open_cloud(served, clock, folders.run))


async def _serve(stack: AsyncExitStack, folders: Folders, clock: SystemClock, config: Config) -> tuple[str, Path]:
    """A process that serves the cloud: its address, and the file with its keys."""
    keys, market = folders.run / "cloud.ini", folders.run / "cloud.toml"
    market.write_text(market_toml(config))
    words = ["cloud", "serve", "--config", str(market), "--keys", str(keys), "--seed", str(SEED)]
    child = spawn("cloud", [sys.executable, "-m", "springtide.cli", *words], folders.log("cloud"))
    stack.push_async_callback(child.stop, clock, STOP_S)
    until = clock.monotonic_s() + START_S
    while True:
        if (address := _address(keys)) is not None:
            return address, keys
        if clock.monotonic_s() > until or child.returncode is not None:
            raise child.failure("did not start")
        await clock.sleep(POLL_S)


def _address(keys: Path) -> str | None:
    """Where it serves; None while the file is not there, or not whole."""
    try:
        return read_keys(keys).endpoint
    except UserError:
        return None


def market_toml(config: Config) -> str:
    """The market that the cloud is served with: what the configuration may rent, with little stock of each offer."""
    lines = ["[market]", f"region = {json.dumps(config.cloud.region)}"]
    for offer in market_offers(config):
        lines += ["", "[[market.offers]]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in msgspec.to_builtins(offer).items()]
    return "\n".join(lines) + "\n"


def market_offers(config: Config) -> Iterator[Offer]:
    """By zone, type and market. Prices are the configuration's, or else the twin's catalogue's."""
    listed = {(offer.instance_type, offer.market): offer.price_fen_per_h for offer in default_offers(("",))}
    allowed = set(config.cloud.markets)
    for zone in config.zones:
        boot_ms = round(zone.boot_s * 1000)
        for machine in config.cloud.types if zone.kind is ZoneKind.CLOUD else ():
            usual = machine.price_cny_per_h * FEN_PER_CNY or machine.cores * FEN_PER_CORE_H
            for market in sorted(allowed & set(machine.markets)):
                share = SPOT_SHARE if market is Market.SPOT else 1.0
                price = listed.get((machine.name, market), usual * share)
                yield Offer(
                    zone=zone.cloud_zone,
                    instance_type=machine.name,
                    market=market,
                    cores=machine.cores,
                    memory_mb=round(machine.memory_gb * _MB_PER_GB),
                    price_fen_per_h=usual if machine.price_cny_per_h and market is not Market.SPOT else price,
                    stock=max(1, zone.nodes_max // STOCK_SHARE),
                    arch=machine.arch,
                    boot_ms=(boot_ms, round(boot_ms * BOOT_P99)),
                )
