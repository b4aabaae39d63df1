"""How a fleet that only counts replicas rents machines: the cheapest room first, within quotas, zones and budgets."""

import math
from collections.abc import Iterable
from itertools import groupby

from springtide.model import FleetPolicy, Market, Offer, RentNodes, StockLevel
from springtide.twin.simulation.hands import Hands
from springtide.twin.simulation.world import World

ORDER_MAX = 1_000
"""Machines of one order."""

BACKOFF_MS = 60_000
"""For so long an offer is left alone that brought nothing. The cluster autoscaler's default is five minutes."""

PASSES = 2
"""So often the offers of one price are gone through at a tick: what one does not have the others may."""


class Buyer:
    """Rents through the hands of a simulation. Offers show a price and a level of stock, as they do to us."""

    def __init__(self, world: World, hands: Hands, policy: FleetPolicy) -> None:
        """Nothing is rented."""
        self._world = world
        self._hands = hands
        self._policy = policy
        self._cores = world.scenario.service.replica_cores
        self._not_before_ms: dict[str, int] = {}
        self._count = 0

    def rent(self, replicas: int) -> None:
        """Order machines for so many replicas, as far as there are any."""
        now_ms = self._world.kernel.now_ms
        usable = [
            offer
            for offer in self._world.market.offers()
            if offer.cores >= self._cores
            and offer.arch == "amd64"
            and offer.level in {StockLevel.PLENTY, StockLevel.LOW}
            and self._world.is_reached(offer.zone)
            and self._not_before_ms.get(offer.key, 0) <= now_ms
        ]
        for _, same in groupby(sorted(usable, key=self._price), key=self._price):
            offers = list(same)
            for _ in range(PASSES):
                replicas = self._pass(replicas, offers)
            if replicas <= 0:
                return

    def _price(self, offer: Offer) -> float:
        """Of the room for one replica, fen/h."""
        return offer.price_fen_per_h / (offer.cores // self._cores)

    def _pass(self, replicas: int, offers: list[Offer]) -> int:
        """Spread an order over offers of one price; what is missing still."""
        for number, offer in enumerate(offers):
            if replicas <= 0:
                break
            share = math.ceil(replicas / (len(offers) - number))
            slots = offer.cores // self._cores
            count = min(math.ceil(share / slots), self._most(offer, replicas), ORDER_MAX)
            if count > 0 and self._not_before_ms.get(offer.key, 0) <= self._world.kernel.now_ms:
                replicas -= slots * self._order(offer, count)
        return replicas

    def _order(self, offer: Offer, count: int) -> int:
        """Send one order; how many machines come, or may come yet where the call was throttled."""
        self._count += 1
        before, waiting = self._hands.rented, len(self._hands.in_flight)
        action = RentNodes(
            zone=offer.zone,
            count=count,
            client_token=f"crew-{self._count}",
            reason="",
            instance_type=offer.instance_type,
            market=offer.market,
            cores=offer.cores,
        )
        self._hands.carry_out([action])
        if len(self._hands.in_flight) > waiting:
            return count
        came = self._hands.rented - before
        if not came:
            self._not_before_ms[offer.key] = self._world.kernel.now_ms + BACKOFF_MS
        return came

    def _most(self, offer: Offer, replicas: int) -> int:
        """Machines that quotas, the zone, the budget and the share of spot allow."""
        market, ordered = self._world.market, [each for each in self._hands.in_flight if isinstance(each, RentNodes)]
        asked = sum(each.count * each.cores for each in ordered if each.market is offer.market)
        cores = [
            quota.limit_cores - quota.used_cores - asked
            for quota in market.quotas()
            if quota.market is offer.market and quota.zone in {"", offer.zone}
        ]
        there = sum(node.zone == offer.zone for node in market.nodes())
        there += sum(each.count for each in ordered if each.zone == offer.zone)
        limits = [left // offer.cores for left in cores] + [self._world.zones[offer.zone].nodes - there]
        if self._policy.spend_max_fen_per_h:
            left_fen = self._policy.spend_max_fen_per_h - market.bill.fen_per_h()
            limits.append(math.floor(left_fen / offer.price_fen_per_h))
        if offer.market is Market.SPOT:
            limits.append(self._spot_left(replicas) // offer.cores)
        return min(limits)

    def _spot_left(self, replicas: int) -> int:
        """Cores of spot that may come, when replicas for all that is missing have come."""
        rented = [(node.market, node.cores) for node in self._world.market.nodes()]
        whole = _sum(cores for _, cores in rented) + replicas * self._cores
        return int(self._policy.spot_share_max * whole) - _sum(cores for kind, cores in rented if kind is Market.SPOT)


def _sum(cores: Iterable[int]) -> int:
    return sum(cores)
