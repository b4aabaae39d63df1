"""What is known between two looks, and how an order is carried out in batches."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from springtide.drivers.alibaba_nodes import APPEAR_MS, FORGET_MS, NodeTable
from springtide.drivers.alibaba_purchase import ORDERS_MAX, Purchase, Purchases
from springtide.drivers.alibaba_settings import AlibabaSettings
from springtide.errors import CloudError, CloudOutOfStock, CloudRefused, CloudThrottled, CloudUnavailable
from springtide.model import Node, NodeOrder, NodeState

SETTINGS = AlibabaSettings("cn-beijing", "shop", {}, (), first_look_s=10, poll_s=2, settled_s=30)
ORDER = NodeOrder("h", 250, "t1")


def node(name: str, state: NodeState = NodeState.BOOTING, rented_ms: int = 0, price: float = 3_600.0) -> Node:
    return Node(name, "h", state, 8, "t1", rented_ms, price_fen_per_h=price, rented_ms=rented_ms)


@pytest.fixture
def table() -> NodeTable:
    return NodeTable(SETTINGS)


def test_looks_begin_late_come_often_and_then_seldom(table: NodeTable) -> None:
    table.order([node("a")])
    assert table.due(9_999) == []
    assert table.due(10_000) == ["a"]
    table.look(["a"], {"a": node("a")}, 10_000)
    assert table.due(11_999) == []
    assert table.due(12_000) == ["a"]
    table.look(["a"], {"a": node("a", NodeState.READY)}, 12_000)
    assert table.nodes["a"].since_ms == 12_000
    assert table.due(41_999) == []
    assert table.due(42_000) == ["a"]


def test_many_that_boot_are_looked_at_less_often(table: NodeTable) -> None:
    names = [f"n{number}" for number in range(3_200)]
    table.order([node(name) for name in names])
    table.look(names, {name: node(name) for name in names}, 10_000)
    assert table.due(13_999) == []
    assert len(table.due(14_000)) == 3_200, "32 calls in 4 seconds"


def test_a_new_node_may_be_missing_for_a_while_and_an_old_one_may_not(table: NodeTable) -> None:
    table.order([node("new"), node("old")])
    table.look(["old"], {"old": node("old")}, 10_000)
    table.look(["new", "old"], {}, 20_000)
    assert set(table.nodes) == {"new"}
    table.look(["new"], {}, APPEAR_MS)
    assert table.nodes == {}


def test_a_list_brings_in_the_unknown_and_ends_the_missing(table: NodeTable) -> None:
    table.order([node("fresh"), node("seen")])
    table.look(["seen"], {"seen": node("seen")}, 10_000)
    table.list_all(["stranger"], 20_000)
    assert set(table.nodes) == {"fresh"}, "what nobody has seen yet is not in lists either"
    assert table.due(20_000) == ["stranger", "fresh"]
    table.look(["stranger"], {}, 20_000)
    assert "stranger" not in table.due(21_000), "it is of somebody else"


def test_a_node_given_back_is_not_brought_back_by_a_late_list(table: NodeTable) -> None:
    table.order([node("a")])
    table.look(["a"], {"a": node("a")}, 10_000)
    table.end(["a", "nobody"], 20_000)
    table.list_all(["a"], 21_000)
    assert table.due(21_000) == []
    table.list_all(["a"], 20_000 + FORGET_MS)
    assert table.due(20_000 + FORGET_MS) == ["a"], "it is still there after all"


def test_what_a_look_does_not_tell_is_kept(table: NodeTable) -> None:
    table.order([node("a", rented_ms=5_000)])
    described = msgspec.structs.replace(
        node("a", rented_ms=0, price=0.0), address="10.0.0.1", since_ms=99, reclaim_ms=400_000
    )
    table.look(["a"], {"a": described}, 16_000)
    table.look(["a"], {"a": msgspec.structs.replace(described, reclaim_ms=500_000)}, 18_000)
    known = table.nodes["a"]
    assert (known.rented_ms, known.since_ms, known.price_fen_per_h) == (5_000, 5_000, 3_600)
    assert (known.address, known.reclaim_ms) == ("10.0.0.1", 400_000)


def test_cost_is_by_the_started_second_until_the_end(table: NodeTable) -> None:
    table.order([node("a"), msgspec.structs.replace(node("b"), release_at_ms=5_000)])
    assert table.cost_fen(2_001) == pytest.approx(6)
    assert table.cost_fen(10_000) == pytest.approx(15)
    table.settle(10_000)
    assert set(table.nodes) == {"a"}
    table.end(["a"], 10_000)
    assert table.cost_fen(99_000) == pytest.approx(15)


class Cloud:
    """Answers batches as it is told: with how many machines, or with an error."""

    def __init__(self, *answers: int | CloudError) -> None:
        self.answers = list(answers)
        self.sent: list[int] = []
        self.at_once = self.most_at_once = 0

    async def send(self, batch: int, size: int) -> Sequence[str]:
        self.sent.append(batch)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        answer = self.answers[batch]
        if isinstance(answer, CloudError):
            raise answer
        return [f"i-{batch}-{number}" for number in range(min(answer, size))]


async def test_batches_go_one_and_then_a_few_at_once() -> None:
    cloud, purchase = Cloud(*[100] * 10), Purchase(ORDER, [100] * 10)
    await purchase.carry_out(cloud.send, 4)
    assert sorted(cloud.sent) == list(range(10))
    assert cloud.most_at_once == 4
    assert len(set(purchase.node_ids)) == 1_000
    assert purchase.is_over


@pytest.mark.parametrize("first", [40, 0], ids=["some", "none"])
async def test_a_first_batch_that_is_not_filled_ends_the_order(first: int) -> None:
    cloud, purchase = Cloud(first, 100, 100), Purchase(ORDER, [100, 100, 50])
    await purchase.carry_out(cloud.send, 4)
    assert cloud.sent == [0]
    assert len(purchase.node_ids) == first


@pytest.mark.parametrize("error", [CloudOutOfStock("gone"), CloudRefused("no money")], ids=["stock", "refused"])
async def test_an_end_after_the_first_is_a_partial_fill(error: CloudError) -> None:
    cloud, purchase = Cloud(100, error, 50), Purchase(ORDER, [100, 100, 50])
    await purchase.carry_out(cloud.send, 1)
    assert cloud.sent == [0, 1]
    assert len(purchase.node_ids) == 100
    assert purchase.is_over


async def test_nothing_at_all_is_an_error() -> None:
    cloud, purchase = Cloud(CloudOutOfStock("gone"), 100, 50), Purchase(ORDER, [100, 100, 50])
    with pytest.raises(CloudOutOfStock):
        await purchase.carry_out(cloud.send, 4)
    assert cloud.sent == [0]


@pytest.mark.parametrize("error", [CloudUnavailable("lost"), CloudThrottled("slow", 5)], ids=["lost", "throttled"])
async def test_a_repetition_sends_what_was_not_answered(error: CloudError) -> None:
    cloud, purchase = Cloud(100, error, 50), Purchase(ORDER, [100, 100, 50])
    with pytest.raises(type(error)):
        await purchase.carry_out(cloud.send, 1)
    assert not purchase.is_over
    cloud.answers[1] = 100
    cloud.sent.clear()
    await purchase.carry_out(cloud.send, 1)
    assert cloud.sent == [1, 2]
    assert len(purchase.node_ids) == 250


async def test_a_throttled_batch_does_not_fan_out() -> None:
    cloud, purchase = Cloud(100, *[CloudThrottled("slow", 5)] * 30), Purchase(ORDER, [100] * 31)
    with pytest.raises(CloudThrottled):
        await purchase.carry_out(cloud.send, 4)
    assert len(cloud.sent) <= 5, "the first, and those that were under way"


def test_orders_are_remembered_within_a_limit() -> None:
    purchases = Purchases()
    purchases.begin(ORDER, [100])
    with pytest.raises(CloudRefused, match="t1"):
        purchases.of(msgspec.structs.replace(ORDER, count=251))
    for number in range(ORDERS_MAX):
        purchases.begin(msgspec.structs.replace(ORDER, client_token=f"n{number}"), [1])
    assert purchases.of(ORDER) is None
