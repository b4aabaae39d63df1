"""What can be bought, at what price, within what quota: the four calls of ECS, version 2014-05-26, that say it."""

from itertools import groupby

from springtide.model import Market as Channel
from springtide.model import Offer, StockLevel
from springtide.twin.cloud_api.account import Account
from springtide.twin.cloud_api.answers import NOT_FOUND, ApiError, Json, invalid, read_moment, second_text
from springtide.twin.cloud_api.parameters import Parameters

HISTORY_PAGE = 1_000
THREE_HOURS_MS = 3 * 3_600_000
SPAN_MAX_MS = 30 * 86_400_000
_QUOTAS = {
    "max-postpaid-instance-vcpu-count": (Channel.ON_DEMAND, "limit"),
    "used-postpaid-instance-vcpu-count": (Channel.ON_DEMAND, "used"),
    "max-spot-instance-vcpu-count": (Channel.SPOT, "limit"),
    "used-spot-instance-vcpu-count": (Channel.SPOT, "used"),
}
_SOLD_OUT = {StockLevel.NONE, StockLevel.GONE}


def describe_available_resource(account: Account, given: Parameters) -> Json:
    """The types of each zone with the level of their stock, and no quantity.

    Rules of the DescribeAvailableResource reference: `DestinationResource` is InstanceType; `SpotStrategy` chooses
    spot; Status is Available or SoldOut, StatusCategory WithStock, ClosedWithStock, WithoutStock, ClosedWithoutStock.
    """
    if given.required("DestinationResource") != "InstanceType":
        raise invalid("DestinationResource", "this cloud answers for InstanceType alone")
    zones: list[Json] = []
    for zone, offers in groupby(_offers(account, given, _channel(given)), lambda offer: offer.zone):
        resources = [_resource(offer) for offer in offers]
        any_left = any(resource["Status"] == "Available" for resource in resources)
        supported: Json = {"Type": "InstanceType", "SupportedResources": {"SupportedResource": resources}}
        zones.append(
            {
                "RegionId": account.region,
                "ZoneId": zone,
                "Status": "Available" if any_left else "SoldOut",
                "StatusCategory": "WithStock" if any_left else "WithoutStock",
                "AvailableResources": {"AvailableResource": [supported]},
            }
        )
    return {"AvailableZones": {"AvailableZone": zones}}


def describe_price(account: Account, given: Parameters) -> Json:
    """What `Amount` instances cost an hour, in CNY; of several zones, the least (DescribePrice reference).

    Disks, images and bandwidth cost nothing here.
    """
    if given.text("ResourceType", "instance") != "instance" or given.text("PriceUnit", "Hour") != "Hour":
        raise invalid("ResourceType", "this cloud has prices of instances by the hour")
    given.required("InstanceType")
    channel, amount = _channel(given), given.whole("Amount", 1, 1, 1_000)
    offers = _offers(account, given, channel)
    if not offers:
        raise ApiError("PRICE.PRICING_PLAN_RESULT_NOT_FOUND", "There is no price for this type.", NOT_FOUND)
    original = min(offer.price_fen_per_h for offer in _offers(account, given, Channel.ON_DEMAND) or offers)
    trade = min(offer.price_fen_per_h for offer in offers)
    price: Json = {
        "Currency": "CNY",
        "OriginalPrice": round(original * amount / 100, 6),
        "TradePrice": round(trade * amount / 100, 6),
        "DiscountPrice": round((original - trade) * amount / 100, 6),
    }
    return {"PriceInfo": {"Price": price, "Rules": {"Rule": []}}}


def describe_spot_price_history(account: Account, given: Parameters) -> Json:
    """The spot prices of a type since `StartTime`, three hours ago by default, oldest first in each zone.

    Rules of the DescribeSpotPriceHistory reference: `NetworkType` and `InstanceType` are required, at most 30 days,
    `Offset` and `NextOffset` page; prices are CNY an hour.
    """
    if given.required("NetworkType") != "vpc":
        raise invalid("NetworkType", "this cloud has vpc alone")
    given.required("InstanceType")
    begin_ms, end_ms = _span(account, given)
    rows: list[Json] = []
    for offer in _offers(account, given, Channel.SPOT):
        pool = account.market.pools[offer.key]
        origin = account.market.pools.get(f"{offer.zone}/{offer.instance_type}/{Channel.ON_DEMAND.value}")
        known = [each for each in pool.history if begin_ms <= each[0] <= end_ms]
        for at_ms, price_fen in known or [(begin_ms, offer.price_fen_per_h)]:
            rows.append(
                {
                    "ZoneId": offer.zone,
                    "InstanceType": offer.instance_type,
                    "Timestamp": second_text(at_ms),
                    "SpotPrice": round(price_fen / 100, 6),
                    "OriginPrice": round((origin or pool).state.price_fen_per_h / 100, 6),
                    "NetworkType": "vpc",
                    "IoOptimized": "optimized",
                }
            )
    offset = given.whole("Offset", 0, 0, 1_000_000)
    page = rows[offset : offset + HISTORY_PAGE]
    following = offset + len(page) if offset + len(page) < len(rows) else 0
    return {"Currency": "CNY", "NextOffset": following, "SpotPrices": {"SpotPriceType": page}}


def describe_account_attributes(account: Account, given: Parameters) -> Json:
    """Quotas in vCPUs and what is used of them; one of a single zone has its ZoneId.

    Rules of the DescribeAccountAttributes reference: up to 8 `AttributeName.N`, none is all.
    """
    names = given.numbered("AttributeName", 8) or list(_QUOTAS)
    zone = given.text("ZoneId")
    items: list[Json] = []
    for name in names:
        if name not in _QUOTAS:
            continue
        channel, what = _QUOTAS[name]
        values: list[Json] = []
        for quota in account.market.quotas():
            if quota.market is channel and zone in {"", quota.zone}:
                value: Json = {"Value": str(quota.limit_cores if what == "limit" else quota.used_cores)}
                values.append({**value, "ZoneId": quota.zone} if quota.zone else value)
        items.append({"AttributeName": name, "AttributeValues": {"ValueItem": values}})
    return {"AccountAttributeItems": {"AccountAttributeItem": items}}


def _channel(given: Parameters) -> Channel:
    return Channel.ON_DEMAND if given.text("SpotStrategy", "NoSpot") == "NoSpot" else Channel.SPOT


def _offers(account: Account, given: Parameters, channel: Channel) -> list[Offer]:
    zone, name = given.text("ZoneId"), given.text("InstanceType")
    cores = given.whole("Cores", 0, 0, 1_024) or given.whole("InstanceCpuCoreCount", 0, 0, 1_024)
    memory_mb = round(given.decimal("Memory", 0.0, 0.0, 1e5) * 1024)
    found = [
        offer
        for offer in account.market.offers()
        if offer.market is channel
        and zone in {"", offer.zone}
        and name in {"", offer.instance_type}
        and cores in {0, offer.cores}
        and memory_mb in {0, offer.memory_mb}
    ]
    return sorted(found, key=lambda offer: offer.zone)


def _resource(offer: Offer) -> Json:
    return {
        "Value": offer.instance_type,
        "Status": "SoldOut" if offer.level in _SOLD_OUT else "Available",
        "StatusCategory": offer.level.value,
    }


def _span(account: Account, given: Parameters) -> tuple[int, int]:
    try:
        end_ms = read_moment(text) if (text := given.text("EndTime")) else account.now_ms
        begin_ms = read_moment(text) if (text := given.text("StartTime")) else end_ms - THREE_HOURS_MS
    except ValueError as error:
        raise invalid("StartTime", "it must be ISO 8601 in UTC") from error
    if not 0 <= end_ms - begin_ms <= SPAN_MAX_MS:
        raise invalid("StartTime", "it must be at most 30 days before EndTime")
    return begin_ms, end_ms
