"""One observation of the whole fleet into one snapshot for each service, which is all that a decision looks at.

Services share the IDC's nodes and the clouds' quotas. They are planned one after the other within a tick, and each
sees what those before it have just planned as if it were under way.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property

import msgspec

from springtide.fleet.desk import Desk, cores_of
from springtide.fleet.observe import Observation, ServiceSeen
from springtide.model import (
    COUNTER,
    Action,
    CalendarEvent,
    Market,
    Node,
    Offer,
    Purchase,
    Quota,
    RentNodes,
    Replica,
    ReplicaState,
    Snapshot,
    StartReplica,
    TrafficSample,
    Zone,
    ZoneKind,
    ZoneMode,
)

TAG_LETTERS_MAX = 16
_HASH_LETTERS = 5


def tag_of(service: str) -> str:
    """A service's mark in the ids of what is bought and started for it: 1 to 16 small letters and digits."""
    letters = "".join(letter for letter in service.lower() if letter.isascii() and letter.isalnum())
    if letters == service and len(service) <= TAG_LETTERS_MAX:
        return service
    return letters[: TAG_LETTERS_MAX - _HASH_LETTERS] + hashlib.sha256(service.encode()).hexdigest()[:_HASH_LETTERS]


def run_of(run_id: str, service: str) -> str:
    """What `Snapshot.run` is for a service: a token is then RUN_ID-TAG-TICK-ZONE."""
    return f"{run_id}-{tag_of(service)}"


def owners(nodes: Iterable[Node], services: Collection[str]) -> dict[str, str]:
    """The service that rented each node, by its purchase token.

    One whose service is not known belongs to a service called as its tag; one whose token has none, to the counter.
    """
    by_tag = {tag_of(service): service for service in services}
    found: dict[str, str] = {}
    for node in nodes:
        if node.client_token:
            words = node.client_token.split("-")
            tagged = len(words) > 3 and words[2].isdigit()  # noqa: PLR2004 - RUN_ID-TAG-TICK-ZONE
            # Without a tag, as a loop for one service buys, the second word is the tick.
            tagged = tagged and (words[1] in by_tag or not words[1].isdigit())
            found[node.node_id] = by_tag.get(words[1], words[1]) if tagged else COUNTER
    return found


class Fleet:
    """What all services have together at one tick: replicas, nodes, and what is under way or planned."""

    def __init__(
        self,
        seen: Observation,
        nodes: Sequence[Node],
        zones: Sequence[Zone],
        under_way: Iterable[tuple[str, Action]],
        desks: Mapping[str, Desk],
        *,
        alone: bool,
    ) -> None:
        """`nodes` and `zones` as the actor knows them. `alone`: there is one service, and all is its own."""
        self._seen = seen
        self._desks = desks
        self._zones = zones
        self._nodes = nodes
        self._owners = {node.node_id: COUNTER for node in nodes if node.client_token} if alone else owners(nodes, desks)
        self._replicas: defaultdict[str, list[Replica]] = defaultdict(list)
        self._taken: defaultdict[str, dict[str, tuple[float, int]]] = defaultdict(dict)
        self._under_way: defaultdict[str, list[Action]] = defaultdict(list)
        self._coming: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._orders: defaultdict[str, list[tuple[RentNodes, int]]] = defaultdict(list)
        self._listed = {replica.replica_id for replica in seen.replicas}
        self._arrived = Counter(node.client_token for node in nodes if node.client_token)
        for replica in seen.replicas:
            self._replicas[replica.service].append(replica)
            if replica.state is not ReplicaState.FAILED:
                self._occupy(replica.service, replica.node_id, replica.revision)
        for service, action in under_way:
            self._under_way[service].append(action)
            self._count(service, action)

    @property
    def services(self) -> set[str]:
        """Who has anything here, wished or not."""
        return {*self._replicas, *self._owners.values(), *self._under_way}

    def replicas(self, service: str) -> list[Replica]:
        """The service's replicas."""
        return self._replicas[service]

    def has_anything(self, service: str) -> bool:
        """Whether a replica, a node or an action of the service is there."""
        return service in self._owners.values() or bool(self._replicas[service] or self._under_way[service])

    def planned(self, service: str, actions: Iterable[Action]) -> None:
        """Let the services after this one see what it is about to do."""
        for action in actions:
            self._count(service, action)

    def snapshot(
        self,
        desk: Desk,
        tick: int,
        calendar: tuple[CalendarEvent, ...],
        modes: Mapping[str, ZoneMode],
        purchases: tuple[Purchase, ...] = (),
    ) -> Snapshot:
        """What the decision on this service may know."""
        seen, service = self._seen, desk.service
        known = seen.services.get(service) or ServiceSeen(health_age_ms=None)
        ages = dict(seen.ages_ms)
        if known.health_age_ms is not None:
            ages["health"] = known.health_age_ms
        traffic, healthy = known.traffic, known.healthy
        if desk.retiring:
            # Nobody is to be served any more: neither figures nor health may hold its end up.
            traffic, healthy, calendar = (TrafficSample(seen.now_ms, 0.0),), None, ()
        desk.count(known.traffic, calendar)
        taken_cores, taken_memory_mb = self._taken_by_others(service)
        return Snapshot(
            run=desk.run,
            tick=tick,
            now_ms=seen.now_ms,
            zones=self._zones_for(service),
            nodes=tuple(node for node in self._nodes if self._owners.get(node.node_id, service) == service),
            replicas=tuple(map(_lean, (*self._replicas[service], *self._unheard(desk)))),
            endpoints=desk.endpoints,
            traffic=traffic,
            calendar=calendar,
            wanted_before=tuple(desk.wanted),
            healthy=healthy,
            ages_ms=ages,
            in_flight=tuple(self._under_way[service]),
            service=service,
            revision=desk.revision if desk.rollout is None else desk.rollout.target,
            rollout=desk.rollout,
            modes=dict(modes),
            zone_health=desk.zone_health,
            capacity=desk.capacity,
            taken_cores=taken_cores,
            taken_memory_mb=taken_memory_mb,
            signals=() if desk.retiring else known.signals,
            scale=desk.scale,
            engines=known.engines,
            scaled_in_ms=desk.scaled_in_ms,
            seasons=() if desk.retiring else desk.seasons.near(seen.now_ms, desk.policy.season_ms),
            usual=None if desk.retiring else desk.seasons.usual,
            offers=self._offers_for(service),
            fills=seen.fills,
            quotas=self._quotas_for(service),
            purchases=() if desk.retiring else purchases,
            cordoned=seen.wishes.cordoned if seen.wishes else frozenset(),
            line_load=seen.line_load,
            line_limit=desk.line_limit,
            others_fen_per_h=self._others_fen_per_h(service),
        )

    def tokens(self) -> set[str]:
        """Of all purchases that are under way, or of which anything is there."""
        under_way = {action.client_token for orders in self._orders.values() for action, _ in orders}
        return under_way | self._arrived.keys()

    def _unheard(self, desk: Desk) -> Iterable[Replica]:
        """Where a runtime has not spoken yet, the balancer's list as it is remembered stands for its last word.

        As of long ago: what the balancer says of them now must count.
        """
        for endpoint in desk.endpoints:
            if endpoint.zone in self._seen.unheard:
                yield Replica(
                    replica_id=endpoint.replica_id,
                    zone=endpoint.zone,
                    node_id=desk.homes.get(endpoint.replica_id, ""),
                    state=ReplicaState.READY if endpoint.weight else ReplicaState.DRAINING,
                    host=endpoint.host,
                    port=endpoint.port,
                    since_ms=0,
                    service=desk.service,
                    revision=desk.revision,
                )

    def _zones_for(self, service: str) -> tuple[Zone, ...]:
        """The zones, without the nodes that other services have rented or are renting there."""
        others: Counter[str] = Counter()
        for node in self._nodes:
            others[node.zone] += self._owners.get(node.node_id, service) != service
        for other, coming in self._coming.items():
            if other != service:
                others.update(coming)
        return tuple(
            msgspec.structs.replace(zone, nodes_max=max(0, zone.nodes_max - others[zone.name]))
            if zone.kind is ZoneKind.CLOUD and others[zone.name]
            else zone
            for zone in self._zones
        )

    def _ordered_by_others(self, service: str) -> list[tuple[RentNodes, int]]:
        return [order for other, orders in self._orders.items() if other != service for order in orders]

    def _offers_for(self, service: str) -> tuple[Offer, ...]:
        """The offers, less what other services have on order, where a number is known."""
        taken: Counter[str] = Counter()
        for action, count in self._ordered_by_others(service):
            taken[action.order.offer_key] += count
        if not taken:
            return self._seen.offers
        return tuple(
            msgspec.structs.replace(offer, stock=max(0, offer.stock - taken[offer.key]))
            if offer.stock is not None and taken[offer.key]
            else offer
            for offer in self._seen.offers
        )

    @cached_property
    def _rented_cores(self) -> Counter[tuple[Market, str]]:
        """Cores of the rented nodes by market and zone, and by market in all zones ("")."""
        found: Counter[tuple[Market, str]] = Counter()
        for node in self._nodes:
            if node.client_token:
                found[node.market, node.zone] += node.cores
                found[node.market, ""] += node.cores
        return found

    def _quotas_for(self, service: str) -> tuple[Quota, ...]:
        """The quotas with what is listed since they were asked for, and what other services have on order."""
        found = []
        for quota in self._seen.quotas:
            used = max(quota.used_cores, self._rented_cores[quota.market, quota.zone])
            for action, count in self._ordered_by_others(service):
                if action.market is quota.market and quota.zone in {"", action.zone}:
                    used += count * action.cores
            found.append(quota if used == quota.used_cores else msgspec.structs.replace(quota, used_cores=used))
        return tuple(found)

    @cached_property
    def _fen_per_h(self) -> defaultdict[str, float]:
        """What the rented nodes of each service cost."""
        found: defaultdict[str, float] = defaultdict(float)
        for node in self._nodes:
            if node.client_token:
                found[self._owners[node.node_id]] += node.price_fen_per_h
        return found

    def _others_fen_per_h(self, service: str) -> float:
        """What the nodes of other services cost, those on order included."""
        total = sum(cost for owner, cost in sorted(self._fen_per_h.items()) if owner != service)
        orders = self._ordered_by_others(service)
        if orders:
            prices = {offer.key: offer.price_fen_per_h for offer in self._seen.offers}
            total += sum(count * prices.get(action.order.offer_key, 0.0) for action, count in orders)
        return total

    def _count(self, service: str, action: Action) -> None:
        if isinstance(action, StartReplica) and action.spec.replica_id not in self._listed:
            self._occupy(service, action.spec.node_id, action.spec.revision)
        elif isinstance(action, RentNodes):
            count = max(0, action.count - self._arrived[action.client_token])
            self._coming[service][action.zone] += count
            self._orders[service].append((action, count))

    def _occupy(self, service: str, node_id: str, revision: str) -> None:
        if node_id in self._owners:
            return  # a rented node is its service's own
        desk = self._desks.get(service)
        cores, memory_mb = cores_of(desk, revision) if desk else (1.0, 0)
        before = self._taken[service].get(node_id, (0.0, 0))
        self._taken[service][node_id] = before[0] + cores, before[1] + memory_mb

    def _taken_by_others(self, service: str) -> tuple[dict[str, float], dict[str, int]]:
        """Cores and MB of the IDC's nodes that other services hold."""
        cores: dict[str, float] = {}
        memory_mb: dict[str, int] = {}
        for other, by_node in self._taken.items():
            if other == service:
                continue
            for node_id, (more_cores, more_mb) in by_node.items():
                cores[node_id] = cores.get(node_id, 0.0) + more_cores
                memory_mb[node_id] = memory_mb.get(node_id, 0) + more_mb
        return cores, {node_id: amount for node_id, amount in memory_mb.items() if amount}


def _lean(replica: Replica) -> Replica:
    """Without what no decision may rest on (signals say it), so that an unchanged replica is equal to itself."""
    if not replica.cpu_s and not replica.memory_bytes:
        return replica
    return msgspec.structs.replace(replica, cpu_s=0.0, memory_bytes=0)
