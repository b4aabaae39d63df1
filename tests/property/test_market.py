"""Whatever is ordered, given back or broken: the twin's cloud sells what it has once, within quota, and bills it."""

import math
import random
from collections import Counter

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from springtide.errors import CloudError
from springtide.model import Market as Channel
from springtide.model import Node, NodeOrder, NodeState, Offer, Quota
from springtide.twin.kernel import Kernel
from springtide.twin.market import Market, MarketSettings
from springtide.twin.market_settings import ApiLimits
from springtide.twin.market_state import MarketState, restore, save

ZONES = ("a", "b")
OFFERS = tuple(
    Offer(zone, name, market, cores, 1024, price, stock=stock, boot_ms=(20_000, 60_000), billing_ms=billing_ms)
    for zone in ZONES
    for name, market, cores, price, stock, billing_ms in (
        ("large", Channel.ON_DEMAND, 32, 652.3183, 40, 1_000),
        ("small", Channel.ON_DEMAND, 8, 163.1, 25, 1_000),
        ("large", Channel.SPOT, 32, 160.7, 30, 1_000),
        ("group", Channel.ECI, 8, 176.48, 150, 60_000),
    )
)
QUOTAS = (Quota(Channel.ON_DEMAND, 1_600), Quota(Channel.ON_DEMAND, 1_000, zone="a"), Quota(Channel.SPOT, 700))
LIMITS = ApiLimits(calls_per_min_else=20, creations_per_min=150)
START_MS = 1_700_000_000_000
TOKENS = [f"t{number}" for number in range(12)]


def opened(now_ms: int, seed: int) -> Market:
    made = MarketSettings(
        offers=OFFERS, quotas=QUOTAS, limits=LIMITS, reclaims_per_h=0.5, price_move=0.3, spot_safe_ms=0
    )
    return Market(Kernel(now_ms), random.Random(seed), made)


class AnyStory(RuleBasedStateMachine):
    """Keeps books of its own, from what the market answers and tells, and compares."""

    def __init__(self) -> None:
        super().__init__()
        self.market = opened(START_MS, 1)
        self.bought: dict[str, set[str]] = {}
        self.orders: dict[str, NodeOrder] = {}
        self.rented: dict[str, Node] = {}
        self.ended_ms: dict[str, int] = {}
        self.market.on_change = self._watch

    def _watch(self) -> None:
        """Note at once who is gone: the moment is that of the bill."""
        alive = {node.node_id: node for node in self.market.nodes()}
        for node_id in self.rented.keys() - alive.keys() - self.ended_ms.keys():
            self.ended_ms[node_id] = self.market.kernel.now_ms
        self.rented.update(alive)

    @rule(
        token=st.sampled_from(TOKENS),
        offer=st.sampled_from(OFFERS),
        count=st.integers(1, 120),
        least=st.sampled_from(["one", "all"]),
        release_s=st.sampled_from([0, 60, 1_800]),
        bid=st.sampled_from([0.0, 150.0, 400.0]),
    )
    def order(self, token: str, offer: Offer, count: int, least: str, release_s: int, bid: float) -> None:
        release_at_ms = self.market.kernel.now_ms + release_s * 1000 if release_s else 0
        bid = bid if offer.market is Channel.SPOT else 0.0
        count_min = count if least == "all" else 1
        order = NodeOrder(offer.zone, count, token, offer.instance_type, offer.market, count_min, release_at_ms, bid)
        self._send(order)

    @rule(token=st.sampled_from(TOKENS))
    def order_again(self, token: str) -> None:
        if token in self.orders:
            self._send(self.orders[token])

    def _send(self, order: NodeOrder) -> None:
        before = self.market.created
        try:
            nodes = self.market.rent(order)
        except CloudError:
            assert self.market.created == before
            return
        token = order.client_token
        if token in self.bought:
            assert order == self.orders[token]
            assert self.market.created == before
            assert {node.node_id for node in nodes} == self.bought[token] - self.ended_ms.keys()
        else:
            assert order.count_min <= len(nodes) <= order.count
            assert self.market.created == before + len(nodes)
            self.bought[token] = {node.node_id for node in nodes}
            self.orders[token] = order

    @rule(share=st.floats(0, 1), seed=st.integers(0, 3))
    def give_back(self, share: float, seed: int) -> None:
        nodes = [node.node_id for node in self.market.nodes()]
        chosen = random.Random(seed).sample(nodes, math.floor(share * len(nodes)))
        try:
            self.market.release([*chosen, "nobody", *chosen[:1]])
        except CloudError:
            return
        assert not set(chosen) & {node.node_id for node in self.market.nodes()}

    @rule(share=st.floats(0, 1), ahead_s=st.sampled_from([0, 30, 3_600]))
    def keep(self, share: float, ahead_s: int) -> None:
        nodes = [node.node_id for node in self.market.nodes()]
        at_ms = self.market.kernel.now_ms + ahead_s * 1000 if ahead_s else 0
        try:
            self.market.keep_until(nodes[: math.floor(share * min(len(nodes), 20))], at_ms)
        except CloudError:
            return

    @rule(seconds=st.sampled_from([0.5, 7, 61, 900]))
    def wait(self, seconds: float) -> None:
        self.market.kernel.run(self.market.kernel.now_ms + round(seconds * 1000))

    @rule(prefix=st.sampled_from(["", "a/", "b/large"]), count=st.sampled_from([None, 0, 5, 200]))
    def stock(self, prefix: str, count: int | None) -> None:
        self.market.set_stock(prefix, count)

    @rule(share=st.floats(0, 1), zone=st.sampled_from(["", *ZONES]))
    def reclaim(self, share: float, zone: str) -> None:
        self.market.reclaim(share, zone)

    @rule(zone=st.sampled_from(ZONES))
    def lose_zone(self, zone: str) -> None:
        self.market.lose_zone(zone, self.market.kernel.now_ms + 30_000)
        assert zone not in {node.zone for node in self.market.nodes()}

    @rule(seed=st.integers(0, 5))
    def restart(self, seed: int) -> None:
        kept = msgspec.json.decode(msgspec.json.encode(save(self.market)), type=MarketState)
        after = opened(self.market.kernel.now_ms, seed)
        restore(after, kept)
        assert after.nodes() == self.market.nodes()
        self.market = after
        after.on_change = self._watch

    @invariant()
    def no_machine_is_lost_or_made_up(self) -> None:
        running = Counter(f"{node.zone}/{node.instance_type}/{node.market.value}" for node in self.market.nodes())
        for key, pool in self.market.pools.items():
            state = pool.state
            assert state.stock >= 0
            assert state.withheld >= 0
            assert state.running == running[key]
            assert state.stock + state.withheld + state.running == state.supplied

    @invariant()
    def no_quota_is_exceeded(self) -> None:
        for quota in self.market.quotas():
            cores = sum(
                node.cores
                for node in self.market.nodes()
                if node.market is quota.market and quota.zone in {"", node.zone}
            )
            assert quota.used_cores == cores <= quota.limit_cores

    @invariant()
    def the_bill_is_the_sum_over_the_machines(self) -> None:
        now_ms = self.market.kernel.now_ms
        units = {offer.key: offer.billing_ms for offer in OFFERS}
        total = 0.0
        for node in self.rented.values():
            unit_ms = units[f"{node.zone}/{node.instance_type}/{node.market.value}"]
            lasted_ms = self.ended_ms.get(node.node_id, now_ms) - node.rented_ms
            total += math.ceil(lasted_ms / unit_ms) * unit_ms * node.price_fen_per_h / 3_600_000
        assert self.market.cost_fen() == pytest.approx(total, rel=1e-12)

    @invariant()
    def each_token_bought_once(self) -> None:
        assert self.market.created == sum(len(ids) for ids in self.bought.values()) == len(self.rented)
        for token, ids in self.bought.items():
            assert {node.node_id for node in self.rented.values() if node.client_token == token} == ids

    @invariant()
    def nothing_outlives_its_release_or_its_reclaim(self) -> None:
        now_ms = self.market.kernel.now_ms
        for node in self.market.nodes():
            assert not node.release_at_ms or now_ms <= node.release_at_ms
            assert not node.reclaim_ms or now_ms <= node.reclaim_ms
            assert node.state in {NodeState.BOOTING, NodeState.READY}


AnyStory.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAnyStory = AnyStory.TestCase
