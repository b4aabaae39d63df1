"""The least that anybody could have paid: a planner who knows demand and stock, and has the same lead times.

He needs `n(t) = ceil(d(t) / r) - own` rented replicas at each moment t, where d is the expected demand, r what a
replica takes at the load it is run at, and `own` the replicas of the owner's nodes. Take these as layers: layer k is
needed while n(t) >= k. Each time a layer comes into need, its machine has been paid for since L before, where L is the
median boot of the quickest market, the image's way from the cache to the node, and a replica's start; or it was kept
since the layer was needed last, where that is cheaper: the shorter of the gap and L. So a layer is paid for T(k) in
all. Machines are taken by their price for a replica, cheapest first, as far as the stock of the beginning goes, and
the longest T(k) goes to the cheapest one:

    cost = sum over k of price(k) * T(k), with T falling and price rising in k.

Layers are nested, so no two of them can share a machine, and by the rearrangement inequality no other assignment costs
less. It is a lower bound: machines are divided into whole replicas that are bought one by one, quotas and limits on
calls bind nobody, every machine boots in the median time, and nobody is served twice. Headroom is not counted, the load
that replicas are run at is. Stock that comes back meanwhile, and spot prices that fall, are left out: in a cloud where
much of that happens it is an estimate.
"""

import math
from collections.abc import Iterable, Sequence

import msgspec

from springtide.model import Market, ZoneKind
from springtide.twin.simulation.cloud import offers
from springtide.twin.simulation.demand import Demand
from springtide.twin.simulation.scenario import Scenario

_MB_PER_GBIT = 125.0
_ROUNDING = 1e-9


class Unit(msgspec.Struct, frozen=True, order=True):
    """Room for one replica: what it costs in fen/h, and of how many such there are at this price."""

    price_fen_per_h: float
    count: int


def clairvoyant_cost_cny(scenario: Scenario, demand: Demand) -> float:
    """The cost of the whole scenario in CNY; what the stock does not have nobody pays for."""
    step_s = scenario.step_s
    rates = list(demand.steps(scenario.duration_s, step_s))
    paid_s = sorted(layer_seconds(rented_needed(rates, scenario), step_s, lead_s(scenario)), reverse=True)
    return cheapest_fen(paid_s, units(scenario, len(paid_s))) / 100


def rented_needed(rates: Iterable[float], scenario: Scenario) -> list[int]:
    """The rented replicas that each step needs."""
    service = scenario.service
    own = sum(
        zone.nodes * (zone.cores_per_node // service.replica_cores)
        for zone in scenario.zones
        if zone.kind is ZoneKind.IDC
    )
    return [max(0, math.ceil(rate / service.replica_per_s - _ROUNDING) - own) for rate in rates]


def lead_s(scenario: Scenario) -> float:
    """From an order until its replica serves, as half of the machines do it."""
    cloud, service = scenario.cloud, scenario.service
    markets = {offer.market for offer in offers(scenario)}
    boot_s = cloud.boot_median_s
    if Market.ECI in markets:
        boot_s = min(boot_s, cloud.eci_boot_median_s)
    quickest = max((z.node_gbit for z in scenario.zones if z.kind is ZoneKind.CLOUD), default=math.inf)
    return boot_s + service.image_mb / (quickest * _MB_PER_GBIT) + service.start_s


def layer_seconds(needed: Sequence[int], step_s: float, lead: float) -> list[float]:
    """For how long the machine of each layer is paid for: while it is needed, and before each time that it is."""
    layers = max(needed, default=0)
    paid = [0.0] * layers
    left_s = [-math.inf] * layers
    before = 0
    for number, count in enumerate([*needed, 0]):
        at_s = number * step_s
        for layer in range(before, count):
            paid[layer] += min(at_s - left_s[layer], lead) - at_s
        for layer in range(count, before):
            paid[layer] += at_s
            left_s[layer] = at_s
        before = count
    return paid


def units(scenario: Scenario, most: int) -> list[Unit]:
    """What can be had, the cheapest first: at most `most` of each, and spot at most by its share."""
    replica = scenario.service.replica_cores
    found = []
    spot_left = math.floor(scenario.policy.spot_share_max * most)
    for offer in sorted(offers(scenario), key=lambda offer: offer.price_fen_per_h / max(1, offer.cores // replica)):
        slots = offer.cores // replica
        count = min(most, (offer.stock or 0) * slots)
        if offer.market is Market.SPOT:
            count = min(count, spot_left)
            spot_left -= count
        if count and offer.arch == "amd64":
            found.append(Unit(offer.price_fen_per_h / slots, count))
    return found


def cheapest_fen(paid_s: Sequence[float], sorted_units: Iterable[Unit]) -> float:
    """The cost of layers, the longest first, on units, the cheapest first."""
    cost, first = 0.0, 0
    for unit in sorted_units:
        taken = paid_s[first : first + unit.count]
        cost += math.fsum(taken) * unit.price_fen_per_h / 3600
        first += len(taken)
        if first >= len(paid_s):
            break
    return cost
