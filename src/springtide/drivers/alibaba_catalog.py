"""What Alibaba Cloud has for rent: stock levels, prices and quotas, asked now and then and remembered for a while.

Quantities are never told: `stock` of an offer is None, and its level is what the cloud says of it.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from springtide.drivers.alibaba_calls import AlibabaCalls
from springtide.drivers.alibaba_eci import price_fen_per_h
from springtide.drivers.alibaba_settings import AlibabaSettings, MachineType
from springtide.errors import CloudError
from springtide.model import FEN_PER_CNY, Market, Offer, Quota, StockLevel
from springtide.ports import Clock

STOCK_AGE_S = 15.0
"""How long a stock level is believed."""

PRICE_AGE_S = 6 * 3600.0
"""The same for a price on demand: they change by the month."""

SPOT_PRICE_AGE_S = 900.0
"""The same for a spot price: they move by the hour or so."""

PRICE_CALLS_MAX = 60
"""Prices asked for at one time; what remains is asked for the next time, and is no offer until then."""

CALLS_AT_ONCE = 4

_SPOT = {Market.ON_DEMAND: "NoSpot", Market.SPOT: "SpotAsPriceGo"}
_QUOTA_ATTRIBUTES = {
    "max-postpaid-instance-vcpu-count": (Market.ON_DEMAND, True),
    "used-postpaid-instance-vcpu-count": (Market.ON_DEMAND, False),
    "max-spot-instance-vcpu-count": (Market.SPOT, True),
    "used-spot-instance-vcpu-count": (Market.SPOT, False),
}


class AlibabaCatalog:
    """Offers by zone × type × market, of the configured types only."""

    def __init__(self, calls: AlibabaCalls, settings: AlibabaSettings, clock: Clock) -> None:
        """Nothing has been asked."""
        self._calls = calls
        self._settings = settings
        self._clock = clock
        self._levels: dict[tuple[str, str, Market], StockLevel] = {}
        self._levels_until_s = 0.0
        self._prices: dict[tuple[str, str, Market], float] = {}
        self._prices_until_s: dict[tuple[str, Market], float] = {}
        self._asking = asyncio.Lock()

    async def offers(self) -> list[Offer]:
        """What can be rented now; one without a price or a level is left out. Raises CloudError."""
        async with self._asking:
            if self._clock.monotonic_s() >= self._levels_until_s:
                await self._ask_levels()
            await self._ask_prices()
        return [offer for zone in self._settings.zones for offer in self._offers_in(zone)]

    async def quotas(self) -> list[Quota]:
        """The account's limits in cores, and what is used of them. Raises CloudError."""
        answer = await self._calls.ecs("DescribeAccountAttributes", {"AttributeName": list(_QUOTA_ATTRIBUTES)})
        items = (answer.get("AccountAttributeItems") or {}).get("AccountAttributeItem") or []
        return list(_quotas(items, self._settings))

    def known_price(self, zone: str, instance_type: str, market: Market) -> float:
        """The price of a machine in fen an hour as it was asked last; 0: it was not."""
        machine = self._settings.type_of(instance_type)
        if machine is None:
            return 0.0
        return self._price_of(zone, machine, market) or 0.0

    async def learn_price(self, instance_type: str, market: Market) -> None:
        """Ask for the price of a type unless it is known. A failure is no matter: it is asked for again."""
        machine = self._settings.type_of(instance_type)
        if machine is None or not self._is_asked(machine, market):
            return
        async with self._asking:
            if self._is_stale(machine, market):
                try:
                    await self._ask_price(machine, market)
                except CloudError:
                    return

    def _offers_in(self, zone: str) -> Iterable[Offer]:
        for machine in self._settings.types:
            for market in machine.markets:
                level = (
                    StockLevel.PLENTY
                    if market is Market.ECI
                    else self._levels.get((zone, machine.instance_type, market))
                )
                price = self._price_of(zone, machine, market)
                if level is None or price is None or (market is Market.ECI and self._settings.eci is None):
                    continue
                yield Offer(
                    zone=zone,
                    instance_type=machine.instance_type,
                    market=market,
                    cores=machine.cores,
                    memory_mb=machine.memory_mb,
                    price_fen_per_h=price,
                    level=level,
                    arch=machine.arch,
                    boot_ms=self._settings.boot_ms.get(market, (60_000, 180_000)),
                )

    def _level_of(self, zone: str, machine: MachineType, market: Market) -> StockLevel | None:
        """ECI tells no levels: only an order does."""
        if market is Market.ECI:
            return StockLevel.PLENTY if self._settings.eci else None
        return self._levels.get((zone, machine.instance_type, market))

    def _price_of(self, zone: str, machine: MachineType, market: Market) -> float | None:
        if market is Market.ECI:
            return machine.price_fen_per_h or price_fen_per_h(machine.cores, machine.memory_mb)
        if market is Market.ON_DEMAND and machine.price_fen_per_h:
            return machine.price_fen_per_h
        name = machine.instance_type
        return self._prices.get((zone, name, market), self._prices.get(("", name, market)))

    async def _ask_levels(self) -> None:
        """One call tells of all zones and types; spot has stock of its own."""
        levels: dict[tuple[str, str, Market], StockLevel] = {}
        markets = {market for machine in self._settings.types for market in machine.markets} & _SPOT.keys()
        for market in sorted(markets):
            answer = await self._calls.ecs(
                "DescribeAvailableResource",
                {
                    "DestinationResource": "InstanceType",
                    "ResourceType": "instance",
                    "InstanceChargeType": "PostPaid",
                    "NetworkCategory": "vpc",
                    "SpotStrategy": _SPOT[market],
                },
            )
            for zone_id, instance_type, level in _levels(answer):
                levels[self._settings.zone_named(zone_id), instance_type, market] = level
        self._levels = levels
        self._levels_until_s = self._clock.monotonic_s() + STOCK_AGE_S

    async def _ask_prices(self) -> None:
        wanted = [
            (machine, market)
            for machine in self._settings.types
            for market in machine.markets
            if self._is_asked(machine, market) and self._is_stale(machine, market)
        ]
        turn = asyncio.Semaphore(CALLS_AT_ONCE)

        async def ask(machine: MachineType, market: Market) -> CloudError | None:
            async with turn:
                try:
                    await self._ask_price(machine, market)
                except CloudError as error:
                    return error
            return None

        answers = await asyncio.gather(*(ask(machine, market) for machine, market in wanted[:PRICE_CALLS_MAX]))
        failures = [error for error in answers if error]
        # Prices of before are better than none: a failure matters only when there are none at all.
        if failures and not self._prices:
            raise failures[0]

    def _is_asked(self, machine: MachineType, market: Market) -> bool:
        return market is Market.SPOT or (market is Market.ON_DEMAND and not machine.price_fen_per_h)

    def _is_stale(self, machine: MachineType, market: Market) -> bool:
        return self._clock.monotonic_s() >= self._prices_until_s.get((machine.instance_type, market), 0.0)

    async def _ask_price(self, machine: MachineType, market: Market) -> None:
        """Prices on demand are a region's (zone ""); those of spot differ by zone."""
        name = machine.instance_type
        if market is Market.ON_DEMAND:
            query = {"ResourceType": "instance", "InstanceType": name, "PriceUnit": "Hour", "Amount": 1}
            answer = await self._calls.ecs("DescribePrice", query)
            price = ((answer.get("PriceInfo") or {}).get("Price") or {}).get("TradePrice")
            found = {"": float(price)} if price is not None else {}
            age_s = PRICE_AGE_S
        else:
            answer = await self._calls.ecs(
                "DescribeSpotPriceHistory", {"InstanceType": name, "NetworkType": "vpc", "OSType": "linux"}
            )
            found, age_s = _spot_prices(answer), SPOT_PRICE_AGE_S
            found = {self._settings.zone_named(zone_id): price for zone_id, price in found.items()}
        self._prices_until_s[name, market] = self._clock.monotonic_s() + age_s
        for zone, price in found.items():
            self._prices[zone, name, market] = price * FEN_PER_CNY


def _levels(answer: Mapping[str, Any]) -> Iterable[tuple[str, str, StockLevel]]:
    for zone in (answer.get("AvailableZones") or {}).get("AvailableZone") or []:
        for resource in (zone.get("AvailableResources") or {}).get("AvailableResource") or []:
            for supported in (resource.get("SupportedResources") or {}).get("SupportedResource") or []:
                try:
                    level = StockLevel(supported.get("StatusCategory"))
                except ValueError:
                    continue
                yield zone.get("ZoneId", ""), supported.get("Value", ""), level


def _spot_prices(answer: Mapping[str, Any]) -> dict[str, float]:
    """The newest price of each zone in CNY an hour."""
    newest: dict[str, tuple[str, float]] = {}
    for each in (answer.get("SpotPrices") or {}).get("SpotPriceType") or []:
        zone_id, stamp = each.get("ZoneId", ""), each.get("Timestamp", "")
        if stamp >= newest.get(zone_id, ("", 0.0))[0]:
            newest[zone_id] = stamp, float(each.get("SpotPrice") or 0.0)
    return {zone_id: price for zone_id, (_, price) in newest.items()}


def _quotas(items: Iterable[Mapping[str, Any]], settings: AlibabaSettings) -> Iterable[Quota]:
    limits: dict[tuple[Market, str], int] = {}
    used: dict[tuple[Market, str], int] = {}
    for item in items:
        known = _QUOTA_ATTRIBUTES.get(item.get("AttributeName", ""))
        if known is None:
            continue
        market, is_limit = known
        for value in (item.get("AttributeValues") or {}).get("ValueItem") or []:
            zone = settings.zone_named(value["ZoneId"]) if value.get("ZoneId") else ""
            (limits if is_limit else used)[market, zone] = int(float(value.get("Value") or 0))
    for (market, zone), limit in limits.items():
        yield Quota(market, limit, used.get((market, zone), 0), zone)
