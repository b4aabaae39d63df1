"""The work of `springtide cloud serve`: the cloud by its configuration, its keys in a file, until SIGTERM."""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from springtide.cli.cloud_keys import write_keys
from springtide.drivers.system import SystemClock, SystemIds, chance
from springtide.errors import UserError
from springtide.twin.cloud_api import ServedCloud, ServedOptions, ServedSettings, Sources
from springtide.twin.market_settings import MarketSettings

SPEED_MAX = 1_000.0


@dataclass(frozen=True)
class ServeCloud:
    """What the command line says."""

    port: int
    seed: int
    config: Path | None
    speed: float
    stock: int | None
    data: Path | None
    keys: Path


class CloudConfig(msgspec.Struct, forbid_unknown_fields=True):
    """The configuration file; what it leaves out is as it comes along."""

    market: MarketSettings = msgspec.field(default_factory=MarketSettings)
    api: ServedSettings = ServedSettings()


async def run_serve_cloud(options: ServeCloud) -> int:
    """Serve until cancelled. Raises UserError for bad options."""
    if not 0 < options.speed <= SPEED_MAX:
        raise UserError(f"--speed {options.speed:g}: give a number above 0, at most {SPEED_MAX:g}")
    config = read_config(options.config)
    market = config.market if options.stock is None else _stocked(config.market, options.stock)
    served = ServedOptions(market, config.api, options.speed, options.port, options.data)
    sources = Sources(SystemClock(), SystemIds(), chance(options.seed))
    async with ServedCloud(sources, served) as cloud:
        write_keys(options.keys, cloud.keys, cloud.endpoint, market.region)
        sys.stdout.write(f"serving {market.region} on http://{cloud.endpoint}\nthe access key is in {options.keys}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()
    return 0


def read_config(path: Path | None) -> CloudConfig:
    """The configuration in a TOML file. Raises UserError."""
    if path is None:
        return CloudConfig()
    try:
        return msgspec.toml.decode(path.read_bytes(), type=CloudConfig)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{path}: {error}") from error


def _stocked(market: MarketSettings, stock: int) -> MarketSettings:
    if stock < 0:
        raise UserError(f"--stock {stock}: give 0 or more machines")
    offers = tuple(msgspec.structs.replace(offer, stock=stock) for offer in market.offers)
    return msgspec.structs.replace(market, offers=offers)
