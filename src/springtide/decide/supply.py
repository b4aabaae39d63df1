"""The cloud of one snapshot in replicas: of nodes of any size, of orders under way, of offers within all limits."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import msgspec

from springtide.decide.observed import Observed
from springtide.decide.place import node_slots, price_per_core
from springtide.decide.provision import cheapest
from springtide.decide.provision_problem import machines_to_be_had
from springtide.decide.stock import believed
from springtide.model import (
    FleetPolicy,
    Market,
    Node,
    Offer,
    Provision,
    ProvisionNeed,
    Purchase,
    Quota,
    RentNodes,
    Zone,
    ZoneKind,
    ZoneMode,
)

HOURS = 1.0
"""How long a machine is expected to be needed: prices are compared by it."""


class Supply:
    """The cloud of one snapshot in replicas: of a zone's nodes, whatever their sizes, of orders, and of offers."""

    def __init__(self, observed: Observed, policy: FleetPolicy, closed: Collection[str] = ()) -> None:
        """Nothing is bought in zones that are `closed`, nor where operators or silence forbid a start."""
        self.observed = observed
        self.snapshot = observed.snapshot
        self.policy = policy
        self.closed = frozenset(closed)
        modes = self.snapshot.modes
        self.zones = [zone for zone in self.snapshot.zones if zone.kind is ZoneKind.CLOUD]
        self.open = frozenset(
            zone.name
            for zone in self.zones
            if zone.name not in closed
            and modes.get(zone.name, ZoneMode.OPEN) is ZoneMode.OPEN
            and not observed.is_silent(zone.name)
        )
        self._sizes: dict[tuple[int, int], int] = {}

    def slots_on(self, node: Node) -> int:
        """Replicas that a rented node can run, whatever runs there now."""
        size = node.cores, node.memory_mb
        if size not in self._sizes:
            self._sizes[size] = node_slots(node.cores, self.policy, node.memory_mb)
        return self._sizes[size]

    @cached_property
    def offers(self) -> dict[str, Offer]:
        """All offers by key, with what is believed of their stock, less what is on order."""
        found = {offer.key: offer for offer in believed(self.snapshot.offers, self.snapshot.fills, self._now_ms)}
        for action, count in self.observed.coming:
            offer = found.get(action.order.offer_key)
            if offer is not None and offer.stock is not None and count:
                found[offer.key] = msgspec.structs.replace(offer, stock=max(0, offer.stock - count))
        return found

    @property
    def _now_ms(self) -> int:
        return self.snapshot.now_ms

    @cached_property
    def there(self) -> dict[str, int]:
        """Replicas that each cloud zone's nodes can run, those that boot included; a cordoned one what it runs."""
        found: dict[str, int] = {}
        for zone in self.zones:
            nodes = self.observed.staying[zone.name]
            sizes = Counter([(node.cores, node.memory_mb) for node in nodes])
            found[zone.name] = sum(
                count * node_slots(cores, self.policy, memory_mb) for (cores, memory_mb), count in sizes.items()
            )
        for name in self.snapshot.cordoned:
            node = self.observed.nodes.get(name)
            if node is not None and node.zone in found and self.observed.has_node(name):
                found[node.zone] -= max(0, self.slots_on(node) - self.observed.occupied[name])
        return found

    @cached_property
    def on_order(self) -> dict[str, int]:
        """Replicas that the nodes of purchases under way will run, by zone."""
        found = dict.fromkeys((zone.name for zone in self.zones), 0)
        for action, count in self.observed.coming:
            if action.zone in found:
                found[action.zone] += count * self.slots_of(action)
        return found

    def slots_of(self, order: RentNodes | Purchase) -> int:
        """Replicas that one node of an order can run."""
        key = order.order.offer_key if isinstance(order, RentNodes) else order.offer_key
        offer = self.offers.get(key)
        if offer is not None:
            return node_slots(offer.cores, self.policy, offer.memory_mb)
        if isinstance(order, Purchase):
            return node_slots(order.cores / max(1, order.count), self.policy)
        if order.cores:
            return node_slots(order.cores, self.policy)
        zone = next((zone for zone in self.zones if zone.name == order.zone), None)
        return node_slots(zone.cores_per_node, self.policy, zone.memory_mb_per_node) if zone else 0

    @cached_property
    def prices(self) -> dict[str, float]:
        """What a core costs on average of what is rented in each zone, fen/h; only of zones that have nodes."""
        found = {}
        for zone in self.zones:
            nodes = self.observed.staying[zone.name]
            if nodes:
                found[zone.name] = sum([n.price_fen_per_h for n in nodes]) / sum([n.cores for n in nodes])
        return found

    @cached_property
    def prices_or_offers(self) -> dict[str, float]:
        """The same, and of the cheapest offer in stock where a zone has no node."""
        found = {}
        for zone in self.zones:
            offers = (offer for offer in self.offers_in[zone.name] if offer.stock != 0)
            least = min((offer.price_fen_per_h / offer.cores for offer in offers), default=price_per_core(zone, {}))
            found[zone.name] = self.prices.get(zone.name, least)
        return found

    @cached_property
    def offers_in(self) -> dict[str, list[Offer]]:
        """The offers of each zone."""
        found: dict[str, list[Offer]] = {zone.name: [] for zone in self.zones}
        for offer in self.offers.values():
            if offer.zone in found:
                found[offer.zone].append(offer)
        return found

    def slots(self, rents: Sequence[RentNodes]) -> dict[str, int]:
        """Replicas that these orders' nodes will run, by zone."""
        found: dict[str, int] = {}
        for rent in rents:
            found[rent.zone] = found.get(rent.zone, 0) + rent.count * self.slots_of(rent)
        return found

    def buyable(self, zone: Zone) -> int:
        """Replicas that could be bought more in a zone, by what is believed of its offers; 0 where none may be."""
        left = self._nodes_left(zone)
        if zone.name not in self.open or left <= 0 or self.observed.is_stale("nodes"):
            return 0
        return sum(
            min(left, machines_to_be_had(offer)) * node_slots(offer.cores, self.policy, offer.memory_mb)
            for offer in self.offers_in[zone.name]
        )

    def _nodes_left(self, zone: Zone) -> int:
        nodes = self.observed.node_counts[zone.name] + self.observed.renting[zone.name]
        return zone.nodes_max - nodes

    def cheapest(self, replicas: int, bought: Sequence[RentNodes] = (), share_max: float = 1.0) -> Provision:
        """What to buy for so many replicas more, beside what this tick has `bought` already."""
        policy = self.policy
        held, spot = self._held(bought)
        zones = {zone.name: self._nodes_left(zone) for zone in self.zones if zone.name in self.open}
        taken: dict[str, int] = {}
        for action in bought:
            zones[action.zone] = zones.get(action.zone, 0) - action.count
            key = action.order.offer_key
            taken[key] = taken.get(key, 0) + action.count
        offers = [
            offer
            if offer.key not in taken or offer.stock is None
            else msgspec.structs.replace(offer, stock=max(0, offer.stock - taken[offer.key]))
            for offer in self.offers.values()
            if zones.get(offer.zone, 0) > 0
        ]
        need = ProvisionNeed(
            cores=math.ceil(replicas * policy.replica_cores),
            hours=HOURS,
            replica_cores=policy.replica_cores,
            replica_memory_mb=policy.replica_memory_mb,
            held=held,
            held_spot=spot,
            zone_share_max=min(policy.zone_share_max, share_max),
            spot_share_max=policy.spot_share_max,
            spend_max_fen_per_h=self._left_to_spend(bought),
        )
        return _within(cheapest(need, offers, self._quotas(bought)), zones)

    def _held(self, bought: Sequence[RentNodes]) -> tuple[dict[str, int], int]:
        """Cores by zone that replicas can use of what is there, on order and bought in this tick; and those of spot."""
        slots: dict[str, int] = {}
        spot = 0
        for zone in self.zones:
            nodes = self.observed.staying[zone.name]
            spot += sum(self.slots_on(node) for node in nodes if node.market is Market.SPOT)
            slots[zone.name] = sum(map(self.slots_on, nodes))
        for action, count in self._ordered(bought):
            more = count * self.slots_of(action)
            slots[action.zone] = slots.get(action.zone, 0) + more
            spot += more if action.market is Market.SPOT else 0
        size = self.policy.replica_cores
        return {name: math.ceil(count * size) for name, count in slots.items() if count}, math.ceil(spot * size)

    def _left_to_spend(self, bought: Sequence[RentNodes]) -> float:
        """What may be spent more, fen/h; 0 when there is no limit."""
        if not self.policy.spend_max_fen_per_h:
            return 0.0
        return max(self.policy.spend_max_fen_per_h - self.spent(bought), 1e-9)

    def spent(self, bought: Sequence[RentNodes] = ()) -> float:
        """What all rented nodes cost and all on order will, fen/h."""
        total = self.snapshot.others_fen_per_h + sum(node.price_fen_per_h for node in self.snapshot.nodes)
        return total + sum(count * self.price(action) for action, count in self._ordered(bought))

    def price(self, order: RentNodes) -> float:
        """Of one node of an order, fen/h, as far as it is known."""
        offer = self.offers.get(order.order.offer_key)
        return offer.price_fen_per_h if offer else order.price_limit_fen_per_h

    def _ordered(self, bought: Sequence[RentNodes]) -> list[tuple[RentNodes, int]]:
        return [*self.observed.coming, *((action, action.count) for action in bought)]

    def _quotas(self, bought: Sequence[RentNodes]) -> list[Quota]:
        """The quotas with what is listed, on order and bought in this tick."""
        found = []
        for quota in self.snapshot.quotas:
            zones = {quota.zone} if quota.zone else None
            used = sum(
                node.cores
                for node in self.snapshot.nodes
                if node.client_token and node.market is quota.market and (zones is None or node.zone in zones)
            )
            used = max(used, quota.used_cores)
            for action, count in self._ordered(bought):
                if action.market is quota.market and (zones is None or action.zone in zones):
                    used += count * action.cores
            found.append(msgspec.structs.replace(quota, used_cores=used))
        return found


def _within(provision: Provision, nodes_left: Mapping[str, int]) -> Provision:
    """Without the machines beyond what a zone may have; the dearest go first."""
    left = dict(nodes_left)
    kept = []
    short = provision.short_cores
    for purchase in sorted(
        provision.purchases, key=lambda one: (one.price_fen_per_h / max(1, one.cores), one.offer_key)
    ):
        count = min(purchase.count, left.get(purchase.zone, 0))
        left[purchase.zone] = left.get(purchase.zone, 0) - count
        cores = purchase.cores * count // purchase.count
        short += purchase.cores - cores
        if count:
            kept.append(msgspec.structs.replace(purchase, count=count, cores=cores))
    if short == provision.short_cores:
        return provision
    limits = (*provision.limits, "nodes_max of a zone")
    return msgspec.structs.replace(provision, purchases=tuple(kept), short_cores=short, limits=limits)
