"""The served cloud of `cloud_rent`, in a process of its own: prints its port, and serves until it is ended.

`python -m bench.cloud_rent_server KEY_ID SECRET STOCK BOOT_S BOOT_P99_S`.
"""

import asyncio
import sys

import msgspec

from springtide.drivers.system import SystemClock, SystemIds, chance
from springtide.model import Market
from springtide.twin.cloud_api import AccessKey, ServedCloud, ServedOptions, Sources
from springtide.twin.market_settings import MarketSettings, default_offers


async def serve(key: AccessKey, stock: int, boot_ms: tuple[int, int]) -> None:
    offers = tuple(
        msgspec.structs.replace(offer, stock=stock, boot_ms=boot_ms)
        for offer in default_offers()
        if offer.market is not Market.ECI
    )
    options = ServedOptions(market=MarketSettings(offers=offers), keys=key)
    async with ServedCloud(Sources(SystemClock(), SystemIds(), chance(1)), options) as cloud:
        print(cloud.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    key_id, secret, stock, boot_s, boot_p99_s = sys.argv[1:]
    asyncio.run(serve(AccessKey(key_id, secret), int(stock), (int(boot_s) * 1000, int(boot_p99_s) * 1000)))
