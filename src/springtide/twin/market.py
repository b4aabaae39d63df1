"""The twin's cloud: offers with a stock nobody sees, quotas, limits on calls, boots that take their time, a bill.

It is a world on a kernel's clock, advanced by plain calls: `springtide cloud serve` puts it behind the HTTP API,
a simulation calls it directly. It is written from the documented behaviour of ECS and ECI; each rule names its source.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from springtide.model import Market as Channel
from springtide.model import Node, NodeOrder, NodeState, Offer, Quota, StockLevel
from springtide.ports import Chance
from springtide.twin.kernel import Kernel
from springtide.twin.market_bill import Bill, Terms
from springtide.twin.market_errors import (
    BadOrder,
    BidTooLow,
    NoStock,
    NotEnoughBalance,
    NotOffered,
    QuotaReached,
    TokenMismatch,
    ZoneNotOnSale,
)
from springtide.twin.market_limits import CREATE_GROUP, DELETE_GROUP, ApiMeter
from springtide.twin.market_settings import MarketSettings
from springtide.twin.market_stock import Pool, open_pools

__all__ = ["BATCH_MAX", "TOKENS_MAX", "Market", "MarketSettings", "Sold"]

BATCH_MAX = 100
"""Machines of one RunInstances or DeleteInstances call (ECS: `Amount` and `InstanceId.N`, 1 to 100)."""

TOKENS_MAX = 100_000
"""Purchases that are remembered; the oldest whose machines are all gone is forgotten first."""

_P99 = 2.3263  # of the standard normal distribution
_Z_MAX = 4.0  # a boot that takes longer than 99.997% of all takes that long
_CREATE = {Channel.ECI: CREATE_GROUP}
_RUN, _DELETE, _KEEP = "RunInstances", "DeleteInstances", "ModifyInstanceAutoReleaseTime"


class Sold(msgspec.Struct):
    """One purchase by its client token: the order, what else it came with, and the machines it made."""

    order: NodeOrder
    fingerprint: str
    node_ids: tuple[str, ...]


class Market:
    """One account's cloud in one region; `rent` … `cost_fen` mean what they mean in `ports.Cloud`."""

    def __init__(self, kernel: Kernel, chance: Chance, settings: MarketSettings | None = None) -> None:
        """Nothing is rented. Stock and prices begin to move by the kernel's clock."""
        self.kernel = kernel
        self.settings = settings or MarketSettings()
        self.meter = ApiMeter(kernel, self.settings.limits)
        self.pools = open_pools(self.settings.offers, self.settings.stock, self.settings.low_share)
        self.bill = Bill()
        self.sold: dict[str, Sold] = {}
        """Purchases by client token."""
        self.on_change: Callable[[], None] = _nothing
        """Called after nodes have come, become ready, been announced to go, or gone."""
        self.created = 0
        """Machines that were ever rented."""
        self.interrupted = 0
        """Spot machines that were taken away."""
        self.live: dict[str, Node] = {}
        """What is rented now, by node id."""
        self.ready_ms: dict[str, int] = {}
        """When each machine that boots will be ready."""
        self._chance = chance
        self._spare_normal: float | None = None
        self._used_cores: Counter[tuple[Channel, str]] = Counter()
        self._due: dict[int, set[str]] = {}
        self.bids_fen: dict[str, float] = {}
        """The price limits of spot machines that have one."""
        self._lost_zones: dict[str, int] = {}
        self._slow: tuple[float, int] = (1.0, 0)
        self._nodes: tuple[Node, ...] | None = ()
        self._offers: tuple[Offer, ...] | None = None
        kernel.at(kernel.now_ms + self.settings.refill_every_ms, self._refill)
        kernel.at(kernel.now_ms + self.settings.price_every_ms, self._move_prices)

    # What a fleet calls.

    def rent(self, order: NodeOrder) -> list[Node]:
        """Rent, as `ports.Cloud.rent`; the calls that it takes are counted. Raises the Cloud port's errors."""
        if order.client_token in self.sold:
            return self.purchase(order)
        if order.market is Channel.ECI:
            granted = self.meter.draw(CREATE_GROUP, max(order.count_min, 1), order.count)
            return self.purchase(order, at_most=granted)
        self.meter.admit(_RUN, math.ceil(order.count / BATCH_MAX))
        return self.purchase(order)

    def nodes(self) -> tuple[Node, ...]:
        """All that is rented, in the order in which it was; the same object until something changes."""
        if self._nodes is None:
            self._nodes = tuple(self.live.values())
        return self._nodes

    def release(self, node_ids: Sequence[str]) -> None:
        """Give machines back; unknown ids are ignored. Raises CloudThrottled, when some may have gone."""
        known = [node_id for node_id in dict.fromkeys(node_ids) if node_id in self.live]
        groups = [node_id for node_id in known if self.live[node_id].market is Channel.ECI]
        machines = [node_id for node_id in known if self.live[node_id].market is not Channel.ECI]
        if machines:
            self.meter.admit(_DELETE, math.ceil(len(machines) / BATCH_MAX))
            self.end(machines)
        while groups:
            granted = self.meter.draw(DELETE_GROUP, 1, len(groups))
            self.end(groups[:granted])
            groups = groups[granted:]

    def keep_until(self, node_ids: Sequence[str], release_at_ms: int) -> None:
        """Move the automatic release of machines; 0: never. Unknown ids are ignored."""
        known = [node_id for node_id in dict.fromkeys(node_ids) if node_id in self.live]
        if known:
            self.meter.admit(_KEEP, len(known))
            self.move_release(known, release_at_ms)

    def offers(self) -> tuple[Offer, ...]:
        """What can be rented, with the price now and the level of the stock; the same object until that changes."""
        if self._offers is None:
            self._offers = tuple(self._shown(pool) for pool in self.pools.values())
        return self._offers

    def quotas(self) -> tuple[Quota, ...]:
        """The account's limits and what is used of them."""
        return tuple(
            msgspec.structs.replace(quota, used_cores=self._used_cores[quota.market, quota.zone])
            for quota in self.settings.quotas
        )

    def cost_fen(self, now_ms: int | None = None) -> float:
        """What has been spent until now (or a given moment that has not come yet)."""
        return self.bill.fen(self.kernel.now_ms if now_ms is None else now_ms)

    def created_by_token(self) -> dict[str, int]:
        """How many machines each client token has made, of the purchases that are remembered."""
        return {token: len(sold.node_ids) for token, sold in self.sold.items()}

    # What the API and the fleet's calls are made of; nothing is counted here.

    def purchase(self, order: NodeOrder, fingerprint: str = "", at_most: int | None = None) -> list[Node]:
        """Sell, once for each client token: the same order again returns what is left of the first.

        `fingerprint` is whatever else must be the same, `at_most` what other limits allow. Raises the errors of
        `market_errors`; a refused token may be used again. Sources: RunInstances, `ClientToken` ("the same parameters"
        or IdempotentParameterMismatch), `Amount` and `MinAmount` (a stock between them is a success with fewer).
        """
        known = self.sold.get(order.client_token)
        if known is not None:
            if known.order != order or known.fingerprint != fingerprint:
                raise TokenMismatch(order.client_token)
            return [self.live[node_id] for node_id in known.node_ids if node_id in self.live]
        pool = self.check(order)
        count = min(order.count, pool.state.stock, order.count if at_most is None else at_most)
        self.meter.create(_CREATE.get(order.market, _RUN), count)
        nodes = self._create(order, pool, count)
        self._remember(order, fingerprint, tuple(node.node_id for node in nodes))
        self._changed()
        return nodes

    def check(self, order: NodeOrder) -> Pool:
        """The pool that can serve an order at this moment. Raises what `purchase` would, and sells nothing."""
        if order.count < 1 or not 0 <= order.count_min <= order.count or not order.client_token:
            raise BadOrder(
                f"{order.count_min} to {order.count} machines with token {order.client_token!r}: give a token"
            )
        pool = self.pool_of(order)
        key = pool.offer.key
        if self._is_lost(order.zone):
            raise ZoneNotOnSale(order.zone)
        if 0 < order.price_limit_fen_per_h < pool.state.price_fen_per_h:
            raise BidTooLow(key)
        self._check_quotas(order, pool)
        needed_fen = order.count * pool.state.price_fen_per_h + self.bill.fen_per_h()
        if self.settings.balance_fen is not None and needed_fen > self.settings.balance_fen:
            raise NotEnoughBalance
        if pool.state.stock < max(order.count_min, 1):
            raise NoStock(key, "NoInstanceStock" if order.market is Channel.ECI else "OperationDenied.NoStock")
        return pool

    def pool_of(self, order: NodeOrder) -> Pool:
        """The pool that an order names; without a type, the first of its zone and market. Raises NotOffered."""
        if order.instance_type:
            pool = self.pools.get(order.offer_key)
        else:
            mine = (p for p in self.pools.values() if (p.offer.zone, p.offer.market) == (order.zone, order.market))
            pool = next(mine, None)
        if pool is None:
            raise NotOffered(order.offer_key)
        return pool

    def end(self, node_ids: Iterable[str]) -> None:
        """Give machines back to the stock. Unknown ids are ignored."""
        for node_id in node_ids:
            if node_id in self.live:
                self._pool(self._remove(node_id)).give_back()
        self._changed()

    def move_release(self, node_ids: Iterable[str], release_at_ms: int) -> None:
        """Move the automatic release of machines that are there; 0: never."""
        for node_id in node_ids:
            node = self.live[node_id]
            self._forget_due(node)
            self.live[node_id] = msgspec.structs.replace(node, release_at_ms=release_at_ms)
            self._plan_release(node_id, release_at_ms)
        self._changed()

    def adopt(self, nodes: Sequence[Node], ready_ms: dict[str, int], bids_fen: dict[str, float]) -> None:
        """Take up machines that an earlier process of this cloud rented; their pools know of them already."""
        for node in nodes:
            self.live[node.node_id] = node
            for zone in ("", node.zone):
                self._used_cores[node.market, zone] += node.cores
            self.bill.begin(self._terms(node), 1)
            self._plan_release(node.node_id, node.release_at_ms)
            if node.node_id in ready_ms:
                self._plan_ready(node.node_id, ready_ms[node.node_id])
            if node.reclaim_ms:
                self._plan_reclaim([node.node_id], node.reclaim_ms)
        self.bids_fen.update(bids_fen)
        self._changed()

    # Faults.

    def set_stock(self, key_prefix: str, count: int | None) -> None:
        """Let every offer whose key begins like this have so many machines to rent, and no refill; None: as before."""
        for key, pool in self.pools.items():
            if key.startswith(key_prefix):
                pool.force(count)
        self._changed()

    def throttle(self, api: str, until_ms: int) -> None:
        """Throttle every call of an API ("": of all) until then."""
        self.meter.throttle(api, until_ms)

    def slow_boots(self, factor: float, until_ms: int) -> None:
        """Let machines that are ordered until then take `factor` times as long to boot."""
        self._slow = factor, until_ms

    def reclaim(self, share: float, zone: str = "") -> int:
        """Announce to this share of the spot machines (of a zone) that they will be taken away; how many.

        Source: interruption is announced 5 minutes before (ECS, "Spot instances").
        """
        spot = [
            node
            for node in self.live.values()
            if node.market is Channel.SPOT and not node.reclaim_ms and zone in {"", node.zone}
        ]
        chosen = sorted(spot, key=lambda _: self._chance.random())[: math.ceil(share * len(spot))]
        self._announce(node.node_id for node in chosen)
        return len(chosen)

    def lose_zone(self, zone: str, until_ms: int) -> None:
        """Let a zone fail: its machines are gone at once and cost nothing more, and none is sold there until then."""
        self._lost_zones[zone] = until_ms
        for node_id in [node.node_id for node in self.live.values() if node.zone == zone]:
            self._pool(self._remove(node_id)).give_back()
        self.kernel.at(until_ms, self._changed)
        self._changed()

    # How it goes on.

    def _create(self, order: NodeOrder, pool: Pool, count: int) -> list[Node]:
        offer, now_ms, price = pool.offer, self.kernel.now_ms, pool.state.price_fen_per_h
        pool.take(count)
        for zone in ("", offer.zone):
            self._used_cores[offer.market, zone] += count * offer.cores
        self.bill.begin((now_ms, price, offer.billing_ms), count)
        nodes = []
        for _ in range(count):
            self.created += 1
            node = Node(
                node_id=_node_id(offer.market, self.created),
                zone=offer.zone,
                state=NodeState.BOOTING,
                cores=offer.cores,
                client_token=order.client_token,
                since_ms=now_ms,
                memory_mb=offer.memory_mb,
                instance_type=offer.instance_type,
                market=offer.market,
                price_fen_per_h=price,
                address=_address(self.created),
                rented_ms=now_ms,
                release_at_ms=order.release_at_ms,
            )
            self.live[node.node_id] = node
            if not self._fails():
                self._plan_ready(node.node_id, now_ms + self._boot_ms(offer))
            if order.price_limit_fen_per_h:
                self.bids_fen[node.node_id] = order.price_limit_fen_per_h
            nodes.append(node)
        for node in nodes:
            self._plan_release(node.node_id, order.release_at_ms)
        return nodes

    def _boot_ms(self, offer: Offer) -> int:
        """Lognormal: half of the boots take up to the median, 99 of 100 up to the p99."""
        median, p99 = offer.boot_ms
        sigma = math.log(max(p99 / median, 1.0)) / _P99 if median > 0 else 0.0
        factor, until_ms = self._slow
        slow = factor if self.kernel.now_ms < until_ms else 1.0
        return round(median * slow * math.exp(sigma * min(max(self._normal(), -_Z_MAX), _Z_MAX)))

    def _fails(self) -> bool:
        share = self.settings.boot_failed_share
        return share > 0.0 and self._chance.random() < share

    def _normal(self) -> float:
        """The next normal number: Box and Muller (1958) make two of two uniform ones."""
        if self._spare_normal is not None:
            spare, self._spare_normal = self._spare_normal, None
            return spare
        radius = math.sqrt(-2.0 * math.log(1.0 - self._chance.random()))
        angle = 2.0 * math.pi * self._chance.random()
        self._spare_normal = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _plan_ready(self, node_id: str, at_ms: int) -> None:
        self.ready_ms[node_id] = at_ms
        self.kernel.at(at_ms, lambda: self._booted(node_id))

    def _booted(self, node_id: str) -> None:
        node = self.live.get(node_id)
        if node is not None and self.ready_ms.pop(node_id, None) is not None:
            self.live[node_id] = msgspec.structs.replace(node, state=NodeState.READY, since_ms=self.kernel.now_ms)
            self._nodes = None
            self.on_change()

    def _plan_release(self, node_id: str, at_ms: int) -> None:
        if not at_ms:
            return
        due = self._due.get(at_ms)
        if due is None:
            due = self._due[at_ms] = set()
            self.kernel.at(at_ms, lambda: self._release_due(at_ms))
        due.add(node_id)

    def _release_due(self, at_ms: int) -> None:
        """Release by itself: `AutoReleaseTime` of RunInstances."""
        due = self._due.pop(at_ms, None)
        if due:
            self.end(sorted(due))

    def _forget_due(self, node: Node) -> None:
        due = self._due.get(node.release_at_ms)
        if due is not None:
            due.discard(node.node_id)

    def _announce(self, node_ids: Iterable[str]) -> None:
        at_ms = self.kernel.now_ms + self.settings.notice_ms
        announced = list(node_ids)
        for node_id in announced:
            self.live[node_id] = msgspec.structs.replace(self.live[node_id], reclaim_ms=at_ms)
        self._plan_reclaim(announced, at_ms)
        if announced:
            self._changed()

    def _plan_reclaim(self, node_ids: Sequence[str], at_ms: int) -> None:
        if node_ids:
            self.kernel.at(at_ms, lambda: self._interrupt(node_ids))

    def _interrupt(self, node_ids: Sequence[str]) -> None:
        for node_id in node_ids:
            if node_id in self.live:
                self._pool(self._remove(node_id)).lose()
                self.interrupted += 1
        self._changed()

    def _remove(self, node_id: str) -> Node:
        node = self.live.pop(node_id)
        self._forget_due(node)
        self.ready_ms.pop(node_id, None)
        self.bids_fen.pop(node_id, None)
        for zone in ("", node.zone):
            self._used_cores[node.market, zone] -= node.cores
        self.bill.end(self._terms(node), self.kernel.now_ms)
        return node

    def _terms(self, node: Node) -> Terms:
        return node.rented_ms, node.price_fen_per_h, self._pool(node).offer.billing_ms

    def _pool(self, node: Node) -> Pool:
        return self.pools[f"{node.zone}/{node.instance_type}/{node.market.value}"]

    def _refill(self) -> None:
        self.kernel.at(self.kernel.now_ms + self.settings.refill_every_ms, self._refill)
        share = self.settings.refill_share_per_h * self.settings.refill_every_ms / 3_600_000
        for pool in self.pools.values():
            pool.refill(share, self._chance)
        self._offers = None

    def _move_prices(self) -> None:
        self.kernel.at(self.kernel.now_ms + self.settings.price_every_ms, self._move_prices)
        for pool in self.pools.values():
            pool.move_price(self.settings.price_move, self.kernel.now_ms, self._chance)
        self._offers = None
        self._announce(
            node_id
            for node_id, limit_fen in self.bids_fen.items()
            if self._may_go(self.live[node_id]) and self._pool(self.live[node_id]).state.price_fen_per_h > limit_fen
        )
        if self.settings.reclaims_per_h:
            share = self.settings.reclaims_per_h * self.settings.price_every_ms / 3_600_000
            spot = [node for node in self.live.values() if node.market is Channel.SPOT and self._may_go(node)]
            self._announce(node.node_id for node in spot if self._chance.random() < share)

    def _may_go(self, node: Node) -> bool:
        return not node.reclaim_ms and self.kernel.now_ms - node.rented_ms >= self.settings.spot_safe_ms

    def _check_quotas(self, order: NodeOrder, pool: Pool) -> None:
        """Refuse the whole order beyond a quota. Source: QuotaExceed(ed).ElasticQuota ask to "reduce the quantity"."""
        cores = order.count * pool.offer.cores
        for quota in self.settings.quotas:
            if quota.market is not order.market or quota.zone not in {"", order.zone}:
                continue
            if self._used_cores[quota.market, quota.zone] + cores > quota.limit_cores:
                where = quota.zone or self.settings.region
                spelling = "QuotaExceeded.ElasticQuota" if quota.zone else "QuotaExceed.ElasticQuota"
                code = "QuotaExceed.Spot" if order.market is Channel.SPOT else spelling
                raise QuotaReached(code, f"the quota of {quota.limit_cores} vCPUs ({order.market.value}) in {where}")

    def _shown(self, pool: Pool) -> Offer:
        offer = pool.shown()
        return msgspec.structs.replace(offer, level=StockLevel.GONE) if self._is_lost(offer.zone) else offer

    def _is_lost(self, zone: str) -> bool:
        return self.kernel.now_ms < self._lost_zones.get(zone, 0)

    def _remember(self, order: NodeOrder, fingerprint: str, node_ids: tuple[str, ...]) -> None:
        if len(self.sold) >= TOKENS_MAX:
            gone = (token for token, sold in self.sold.items() if not any(n in self.live for n in sold.node_ids))
            self.sold.pop(next(gone, next(iter(self.sold))))
        self.sold[order.client_token] = Sold(order, fingerprint, node_ids)

    def _changed(self) -> None:
        self._nodes = None
        self._offers = None
        self.on_change()


def _node_id(market: Channel, number: int) -> str:
    return f"{'eci' if market is Channel.ECI else 'i'}-2ze{number:015d}"


def _address(number: int) -> str:
    """The private address: 10.0.0.0/8, in order."""
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _nothing() -> None:
    """What is called when nobody listens."""
