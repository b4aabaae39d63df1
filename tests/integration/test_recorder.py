"""The recorder between the real journal and the real ledger."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import pytest
from structlog.testing import capture_logs

from springtide.errors import InventoryUnavailable, UserError
from springtide.model import JournalEntry, Reservation, ReserveStatus
from springtide.sale.orders import bucket_of
from springtide.sale.recorder import ROWS_WANTED, Recorder, RecorderPace, Share, _batches, _entries_wanted
from tests.integration.order_path import CLOCK, Engines, World, empty_world, small_sale, started_engines

PACE = RecorderPace(idle_s=0.01, retry_first_s=0.02, retry_max_s=0.1)


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    with started_engines() as engines:
        yield engines


@pytest.fixture
async def world(engines: Engines) -> AsyncIterator[World]:
    async with empty_world(engines) as world:
        yield world


def recorder(world: World, consumer: str = "r1") -> Recorder:
    return Recorder(world.inventory, world.ledger, CLOCK, consumer, PACE)


async def eventually(check: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.02)


async def test_what_was_acknowledged_is_recorded_as_it_was(world: World) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    buyers = [f"b{number}" for number in range(30)]
    results = await world.buy(sale, buyers, quantity=2)
    assert {result.status for result in results} == {ReserveStatus.RESERVED}
    mine = recorder(world)
    assert await mine.measure_lag() == 2
    assert await mine.drain_once() == 2
    assert await mine.drain_once() == 0
    assert await mine.measure_lag() == 0
    orders = {order.reservation.buyer: order for order in await world.ledger.orders("live")}
    assert set(orders) == set(buyers)
    for buyer, result in zip(buyers, results, strict=True):
        one = orders[buyer].reservation
        assert (one.order_id, one.sku, one.quantity, one.key) == (result.order_id, "tea", 2, "k-tea")
        assert one.pay_by_ms == result.pay_by_ms
    assert mine.figures.recorded == 30
    for bucket in range(2):
        cut = await world.inventory.cut("live", bucket)
        assert (await world.ledger.positions("live"))[bucket] == cut.last_entry_id


async def test_entries_read_and_never_acknowledged_are_recorded_once_by_the_next(world: World) -> None:
    sale = small_sale(buckets=1)
    await world.inventory.publish(sale)
    for number in range(5):
        await world.buy(sale, [f"b{number}"])
    # A recorder that died after reading, and one that died between recording and acknowledging.
    assert len(await world.inventory.read_journal("live", 0, "dead", 3)) == 3
    half_done = await world.inventory.read_journal("live", 0, "half", 2)
    await world.ledger.publish(sale)
    await world.ledger.record_entries("live", 0, half_done)
    mine = recorder(world)

    async def all_there() -> bool:
        await mine.drain_once()
        return await world.inventory.journal_depth("live", 0) == 0

    await eventually(all_there)
    assert len(await world.ledger.orders("live")) == 5
    assert mine.figures.recorded == 3


async def test_recorder_waits_for_a_dead_ledger_and_then_catches_up(world: World) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    mine = recorder(world)
    running = asyncio.create_task(mine.run())
    try:
        await world.buy(sale, ["b1", "b2"])

        async def recorded() -> bool:
            return mine.figures.recorded == 2

        await eventually(recorded)
        os.kill(world.engines.postgres.child.pid, signal.SIGKILL)
        await world.engines.postgres.child.wait(CLOCK, 5.0)
        await world.buy(sale, [f"c{number}" for number in range(10)])

        async def failing() -> bool:
            return mine.figures.failures >= 3

        await eventually(failing)
        assert "ledger" in mine.figures.last_error
        assert not running.done()
        await world.engines.postgres.restart()

        async def caught_up() -> bool:
            return mine.figures.recorded == 12

        await eventually(caught_up)
        assert len(await world.ledger.orders("live")) == 12
    finally:
        mine.stop()
        await running


async def test_recorder_waits_for_a_dead_inventory_and_loses_nothing(world: World) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    await world.buy(sale, [f"b{number}" for number in range(10)])
    os.kill(world.engines.valkey.child.pid, signal.SIGKILL)
    await world.engines.valkey.child.wait(CLOCK, 5.0)
    mine = recorder(world)
    running = asyncio.create_task(mine.run())
    try:

        async def failing() -> bool:
            return mine.figures.failures >= 2

        await eventually(failing)
        await world.engines.valkey.restart()

        async def caught_up() -> bool:
            return mine.figures.recorded == 10

        await eventually(caught_up)
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_a_bucket_that_fails_does_not_hold_up_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    await world.buy(sale, [f"b{number}" for number in range(20)])
    read = world.inventory.read_journal

    async def read_unless_first(sale: str, bucket: int, consumer: str, count: int) -> list[JournalEntry]:
        if bucket == 0:
            raise InventoryUnavailable("the shard of bucket 0 is away")
        return await read(sale, bucket, consumer, count)

    monkeypatch.setattr(world.inventory, "read_journal", read_unless_first)
    mine = recorder(world)
    with pytest.raises(InventoryUnavailable, match="bucket 0"):
        await mine.drain_once()
    buckets = {order.reservation.bucket for order in await world.ledger.orders("live")}
    assert buckets == {1}


async def test_a_shard_that_does_not_answer_does_not_hold_up_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sale = small_sale(buckets=8)
    await world.inventory.publish(sale)
    await world.ledger.publish(sale)
    buyers = [f"b{number}" for number in range(60)]
    await world.buy(sale, buyers)
    read, depth, hung = world.inventory.read_journal, world.inventory.journal_depth, set[int]()

    async def read_unless_dead(sale: str, bucket: int, consumer: str, count: int) -> list[JournalEntry]:
        if bucket < 6:
            hung.add(bucket)
            await asyncio.sleep(0.3)
            raise InventoryUnavailable("no answer in time")
        return await read(sale, bucket, consumer, count)

    async def depth_unless_dead(sale: str, bucket: int) -> int:
        if bucket < 6:
            raise InventoryUnavailable("away")
        return await depth(sale, bucket)

    async def away(*_: object) -> list[str]:
        raise InventoryUnavailable("away")

    # Nobody can list or view the sales either: they need all shards.
    for name, call in (
        ("read_journal", read_unless_dead),
        ("journal_depth", depth_unless_dead),
        ("sales", away),
        ("view", away),
    ):
        monkeypatch.setattr(world.inventory, name, call)
    mine = recorder(world)
    running = asyncio.create_task(mine.run())
    alive = {buyer for buyer in buyers if bucket_of(buyer, 8) >= 6}

    async def recorded() -> bool:
        return mine.figures.recorded == len(alive) and hung == set(range(6))

    await eventually(recorded)
    assert {order.reservation.buyer for order in await world.ledger.orders("live")} == alive
    assert mine.figures.failing > 0
    monkeypatch.undo()

    async def caught_up() -> bool:
        return mine.figures.recorded == 60 and mine.figures.failing == 0

    await eventually(caught_up)
    mine.stop()
    await running


async def test_recorders_with_shares_record_each_bucket_in_one_place(world: World) -> None:
    sale = small_sale(buckets=5)
    await world.inventory.publish(sale)
    await world.buy(sale, [f"b{number}" for number in range(60)])
    shares = [Share.of(text) for text in ("1/3", "2/3", "3/3")]
    recorders = [Recorder(world.inventory, world.ledger, CLOCK, "recorder", PACE, share) for share in shares]
    for one in recorders:
        await one.drain_once()
    assert sum(one.figures.recorded for one in recorders) == 60
    assert all(one.figures.recorded < 60 for one in recorders)
    places = [("live", bucket) for bucket in range(5)]
    assert [sum(share.has(place) for share in shares) for place in places] == [1] * 5


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", ""])
def test_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="I/N"):
        Share.of(text)


async def test_order_whose_key_has_another_is_counted_logged_and_kept(world: World) -> None:
    sale = small_sale(buckets=1)
    await world.inventory.publish(sale)
    await world.ledger.publish(sale)
    # As after an inventory that came back with old data: the key is recorded with an order that it does not know.
    before = Reservation("before", "live", 0, "b1", "k-tea", "tea", 1, 1, 2)
    await world.ledger.record([before])
    await world.buy(sale, ["b1", "b2"])
    mine = recorder(world)
    with capture_logs() as logs:
        assert await mine.drain_once() == 1
    assert (mine.figures.recorded, mine.figures.conflicts) == (1, 1)
    (told,) = [line for line in logs if line["event"] == "order_in_conflict"]
    assert (told["order"], told["log_level"]) == ("o-b1-tea", "error")
    (conflict,) = await world.ledger.conflicts("live", 10)
    assert (conflict.order_id, conflict.buyer, conflict.key) == ("o-b1-tea", "b1", "k-tea")
    assert [order.reservation.order_id for order in await world.ledger.orders("live")] == ["before", "o-b2-tea"]


async def test_two_recorders_record_everything_once(world: World) -> None:
    sale = small_sale(buckets=1)
    await world.inventory.publish(sale)
    recorders = [recorder(world, f"r{number}") for number in range(2)]
    running = [asyncio.create_task(one.run()) for one in recorders]
    for number in range(40):
        await world.buy(sale, [f"b{number}"])

    async def all_there() -> bool:
        return await world.inventory.journal_depth("live", 0) == 0

    await eventually(all_there)
    for one in recorders:
        one.stop()
    await asyncio.gather(*running)
    assert len(await world.ledger.orders("live")) == 40
    assert sum(one.figures.recorded for one in recorders) == 40


def entry(rows: int) -> JournalEntry:
    return JournalEntry("1-0", (Reservation("o", "live", 0, "b", "k", "tea", 1, 1, 1),) * rows)


@pytest.mark.parametrize("sizes", [[], [1], [1024] * 5, [1] * 1024, [3999, 1, 1], [2024, 1000, 976]])
def test_writes_are_bounded_and_keep_the_order(sizes: Sequence[int]) -> None:
    entries = [entry(rows) for rows in sizes]
    batches = list(_batches(entries))
    assert [one for batch in batches for one in batch] == entries
    assert all(batches)
    assert all(sum(len(one.reservations) for one in batch) <= ROWS_WANTED for batch in batches)


@pytest.mark.parametrize(("rows", "wanted"), [(0, 1024), (1, 1024), (64, 62), (1024, 3)])
def test_the_next_read_asks_for_what_one_write_holds(rows: int, wanted: int) -> None:
    assert _entries_wanted([entry(rows)] * 7) == wanted
