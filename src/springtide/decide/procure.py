"""Replicas → machines to rent where a cloud has offers: what it lacks, and what to buy for that.

The order is kept strictly: the IDC's base, then the cloud, on what is rented before anything is bought, and the IDC's
spare room only for what the cloud cannot deliver. What is bought is the cheapest that is believed to be had
(`stock`, `provision.cheapest`); what comes short is asked of the next best offer at the next tick.
"""

import math
from collections.abc import Mapping

import msgspec

from springtide.decide.autoscale import replica_rate
from springtide.decide.names import client_token
from springtide.decide.place import Budget, Offered, Placement, open_slots, place
from springtide.decide.release import release_at_ms
from springtide.decide.supply import Supply
from springtide.model import Provision, Purchase, RentNodes

LINE_FULL = "the lines to the cloud have no room for more: nothing more is rented until their load is within its share"

NEEDED_PART = 0.5
"""A scheduled purchase is ordered if at least this part of it is missing; for less, the cheapest will do."""

ROUNDS = 4
"""How often in a tick the cheapest is looked for: again where zones may not have all that was found in them."""

SPARE_MS = 600_000
"""What an event's plan has bought stays for so long after its capacity is wanted, though the demand wants less."""


class Procured(msgspec.Struct, frozen=True):
    """The placement, the purchases that it needs, and what a person has to know.

    `held` is the replicas' worth of machines that stays, beside the placement, for events to come; `later` are replicas
    of the placement whose machines are scheduled.
    """

    placement: Placement
    supply: Supply | None = None
    rents: tuple[RentNodes, ...] = ()
    alerts: tuple[str, ...] = ()
    held: int = 0
    later: int = 0


class Buyer:
    """The purchases of one tick, as actions with their tokens."""

    def __init__(self, supply: Supply, ahead_ms: int) -> None:
        """Nothing is bought yet. Events within `ahead_ms` are what is bought for."""
        self._supply = supply
        self._snapshot = supply.snapshot
        self.in_sight_ms = supply.snapshot.now_ms + ahead_ms
        self._release_after_ms = supply.policy.release_after_ms
        self._release_at_ms = release_at_ms(supply.snapshot, supply.policy, ahead_ms)
        if self._release_after_ms:
            # What comes in place of a scheduled purchase is for the same event.
            now_ms = supply.snapshot.now_ms
            ends = (p.needed_until_ms for p in supply.snapshot.purchases if p.ordered or p.order_ms <= now_ms)
            self._release_at_ms = max(self._release_at_ms, max(ends, default=0) + self._release_after_ms)
        self._spend_max = supply.policy.spend_max_fen_per_h
        self.rents: list[RentNodes] = []
        self.refused: list[str] = []
        self.planned = _scheduled_slots(supply, self.in_sight_ms)
        self.have = {name: slots + supply.on_order[name] for name, slots in supply.there.items()}
        """Replicas by zone that what is there and coming can run, what was bought included."""

    def take_due(self, missing: int) -> int:
        """Order what an event's plan has scheduled until now, word for word, while it is missing.

        What is then still missing. What would be over the spending limit is refused.
        """
        for purchase in self._snapshot.purchases:
            slots = purchase.count * self._supply.slots_of(purchase)
            if missing < slots * NEEDED_PART or not self._is_due(purchase):
                continue
            rent = self._scheduled(purchase)
            cost = self._supply.spent([*self.rents, rent])
            if self._spend_max and cost > self._spend_max:
                self.refused.append(
                    f"{purchase.count} × {purchase.offer_key} is not ordered: {cost / 100:.2f} CNY/h would be over the"
                    f" spending limit of {self._spend_max / 100:.2f} CNY/h; raise it, or plan for less"
                )
                continue
            self._order(rent)
            missing -= slots
        return missing

    def _is_due(self, purchase: Purchase) -> bool:
        due = not purchase.ordered and purchase.order_ms <= self._snapshot.now_ms < purchase.needed_until_ms
        return due and purchase.zone in self._supply.open

    def _scheduled(self, purchase: Purchase) -> RentNodes:
        after_ms = self._release_after_ms
        return RentNodes(
            zone=purchase.zone,
            count=purchase.count,
            client_token=purchase.client_token,
            reason="the plan of an event orders it now",
            instance_type=purchase.instance_type,
            market=purchase.market,
            release_at_ms=purchase.needed_until_ms + after_ms if after_ms else 0,
            cores=self._cores(purchase),
        )

    def take(self, provision: Provision, reason: str) -> None:
        """Order what was found to be the cheapest."""
        for purchase in provision.purchases:
            number = sum(rent.zone == purchase.zone for rent in self.rents)
            self._order(
                RentNodes(
                    zone=purchase.zone,
                    count=purchase.count,
                    client_token=client_token(self._snapshot, purchase.zone, number),
                    reason=reason,
                    instance_type=purchase.instance_type,
                    market=purchase.market,
                    release_at_ms=self._release_at_ms,
                    cores=self._cores(purchase),
                )
            )

    def held(self, placement: Placement) -> int:
        """Replicas' worth of machines to leave alone beside a placement: for events out of sight, and as spare."""
        now_ms = self._snapshot.now_ms
        in_sight = _scheduled_slots(self._supply, now_ms - SPARE_MS, self.in_sight_ms)
        in_cloud = sum(placement.by_zone[zone.name] for zone in self._supply.zones)
        return self.planned + max(0, in_sight - in_cloud)

    def _order(self, rent: RentNodes) -> None:
        self.rents.append(rent)
        _add(self.have, self._supply.slots([rent]))

    def _cores(self, purchase: Purchase) -> int:
        offer = self._supply.offers.get(purchase.offer_key)
        return offer.cores if offer else purchase.cores // max(1, purchase.count)


def procure(
    wanted: int,
    supply: Supply,
    budget: Budget | None = None,
    *,
    ahead_ms: int,
    buys: bool = True,
) -> Procured:
    """Place `wanted` replicas and buy what they lack.

    Events within `ahead_ms` are in the demand already. `buys` is whether the line has room for more in the cloud.
    """
    observed, snapshot = supply.observed, supply.snapshot
    policy, down = supply.policy, supply.closed
    buyer = Buyer(supply, ahead_ms)
    room = open_slots(observed, policy, buyer.have)
    placement = place(wanted, snapshot.zones, policy, down, Offered(room, supply.prices, "no offer is needed"), budget)
    free = sum(room[zone.name] - placement.by_zone[zone.name] for zone in supply.zones if zone.name not in down)
    kept = budget is None or placement.promised >= budget.promised
    if placement.short == 0 and placement.detour == 0 and kept and free >= buyer.planned:
        placement = _settled(wanted, placement, supply, room, budget)
        return Procured(placement, supply, held=buyer.held(placement))
    return _buy(wanted, supply, buyer, budget, buys=buys and not observed.is_stale("nodes"))


def _settled(
    wanted: int, placement: Placement, supply: Supply, room: Mapping[str, int], budget: Budget | None
) -> Placement:
    """As many replicas, but none moves to another cloud zone while those that live in the cloud suffice.

    A zone whose dearest nodes go gets cheaper on average: without this it would be filled again, and another emptied.
    """
    live = supply.observed.live_by_zone
    cloud = [zone.name for zone in supply.zones]
    stays = {name: min(room[name], live[name]) for name in cloud}
    if sum(placement.by_zone[name] for name in cloud) > sum(stays.values()):
        return placement
    offered = Offered({**room, **stays}, supply.prices, "no offer is needed")
    settled = place(wanted, supply.snapshot.zones, supply.policy, supply.closed, offered, budget)
    kept = settled.short == 0 and settled.detour == 0 and settled.promised >= placement.promised
    return settled if kept else placement


def _buy(wanted: int, supply: Supply, buyer: Buyer, budget: Budget | None, *, buys: bool) -> Procured:
    """What is there and coming does not do: buy, as far as it goes, and place on what there is then."""
    observed, policy, down = supply.observed, supply.policy, supply.closed
    zones = supply.snapshot.zones
    more = {zone.name: supply.buyable(zone) if buys else 0 for zone in supply.zones}
    could = open_slots(observed, policy, {name: slots + more[name] for name, slots in buyer.have.items()})
    first = place(wanted, zones, policy, down, Offered(could, supply.prices_or_offers, "all offers together"), budget)
    # More than this in one zone would not keep the failure budget.
    cap = first.total - first.promised if first.promised else None
    room = open_slots(observed, policy, buyer.have)
    cloud = [zone.name for zone in supply.zones if zone.name not in down]
    in_cloud = sum(first.by_zone[name] for name in cloud)
    missing = in_cloud - sum(room[name] if cap is None else min(room[name], cap) for name in cloud)
    later = _later(wanted, missing, supply, buyer.in_sight_ms)
    missing += buyer.planned - sum(later.values())
    limits: tuple[str, ...] = ()
    missing = buyer.take_due(missing) if buys else 0
    share = min(1.0, cap / in_cloud) if cap is not None and in_cloud else 1.0
    reason = f"{in_cloud} replicas wanted in the cloud, {missing} more than what is there or coming takes"
    for _ in range(ROUNDS):
        if missing <= 0:
            break
        found, before = supply.cheapest(missing, buyer.rents, share), len(buyer.rents)
        buyer.take(found, reason)
        limits = found.limits if found.short_cores else ()
        missing -= sum(supply.slots(buyer.rents[before:]).values())
        if len(buyer.rents) == before:
            break
    _add(buyer.have, later)
    said = f"the cloud's offers: {'; '.join(limits) or 'no more can be had now'}" if buys else LINE_FULL
    room = open_slots(observed, policy, buyer.have)
    placement = place(wanted, zones, policy, down, Offered(room, supply.prices_or_offers, said), budget)
    refused = (*buyer.refused, *(limit for limit in limits if "spend" in limit))
    return Procured(placement, supply, tuple(buyer.rents), refused, buyer.held(placement), sum(later.values()))


def _scheduled_slots(supply: Supply, after_ms: int, until_ms: int | None = None) -> int:
    """Replicas' worth of machines that were to be ordered until now for demand that begins within these moments."""
    snapshot = supply.snapshot
    return sum(
        purchase.count * supply.slots_of(purchase)
        for purchase in snapshot.purchases
        if (purchase.ordered or purchase.order_ms <= snapshot.now_ms)
        and after_ms < purchase.needed_ms
        and snapshot.now_ms < purchase.needed_until_ms
        and (until_ms is None or purchase.needed_ms <= until_ms)
    )


def _later(wanted: int, missing: int, supply: Supply, in_sight_ms: int) -> dict[str, int]:
    """Replicas by zone that an event's plan has scheduled for later and that need not be bought now.

    They count for what was announced, never for demand that is there.
    """
    snapshot, policy = supply.snapshot, supply.policy
    waiting = [
        one
        for one in snapshot.purchases
        if not one.ordered
        and one.order_ms > snapshot.now_ms
        and one.needed_ms <= in_sight_ms
        and one.zone in supply.open
    ]
    if missing <= 0 or not waiting:
        return {}
    newest = snapshot.traffic[-1].requests_per_s if snapshot.traffic else 0.0
    seen = math.ceil(newest * (1 + policy.headroom) / replica_rate(snapshot, policy))
    left = min(missing, max(0, wanted - seen))
    found: dict[str, int] = {}
    for purchase in waiting:
        slots = min(left, purchase.count * supply.slots_of(purchase))
        found[purchase.zone] = found.get(purchase.zone, 0) + slots
        left -= slots
    return found


def _add(slots: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        if name in slots:
            slots[name] += count
