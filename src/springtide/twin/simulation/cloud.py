"""The cloud of a scenario, as the twin's market takes it."""

import msgspec

from springtide.config.fields import to_ms
from springtide.model import Market, Offer, Quota, ZoneKind
from springtide.twin.market_settings import MarketSettings, default_offers
from springtide.twin.simulation.scenario import Scenario

_UNLIMITED_CORES = 1_000_000


def market_settings(scenario: Scenario) -> MarketSettings:
    """Offers, quotas and limits."""
    cloud = scenario.cloud
    quotas = tuple(Quota(quota.market, quota.cores, zone=quota.zone) for quota in cloud.quotas)
    unlimited = tuple(Quota(market, _UNLIMITED_CORES) for market in (Market.ON_DEMAND, Market.SPOT, Market.ECI))
    return MarketSettings(
        offers=offers(scenario),
        quotas=quotas or unlimited,
        limits=cloud.limits,
        refill_share_per_h=cloud.refill_share_per_h,
        price_move=cloud.price_move,
        reclaims_per_h=cloud.reclaims_per_h,
    )


def offers(scenario: Scenario) -> tuple[Offer, ...]:
    """What the cloud has at the beginning, with its true stock."""
    zones = tuple(zone.name for zone in scenario.zones if zone.kind is ZoneKind.CLOUD)
    cloud = scenario.cloud
    ecs_ms = to_ms(cloud.boot_median_s), to_ms(cloud.boot_p99_s)
    eci_ms = to_ms(cloud.eci_boot_median_s), to_ms(cloud.eci_boot_p99_s)
    if not cloud.offers:
        return tuple(
            msgspec.structs.replace(offer, boot_ms=eci_ms if offer.market is Market.ECI else ecs_ms)
            for offer in (default_offers(zones) if zones else ())
        )
    return tuple(
        Offer(
            zone=zone,
            instance_type=offer.instance_type,
            market=offer.market,
            cores=offer.cores,
            memory_mb=offer.memory_gib * 1024,
            price_fen_per_h=offer.price_cny_per_h * 100,
            stock=offer.stock,
            boot_ms=eci_ms if offer.market is Market.ECI else ecs_ms,
        )
        for offer in cloud.offers
        for zone in (offer.zones or zones)
    )
