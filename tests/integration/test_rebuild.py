"""A sale that lost its Valkey, put back from PostgreSQL; on the real engines, with the real command."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from springtide.cli.audit import run_audit
from springtide.cli.sale_rebuild import run_rebuild
from springtide.errors import InventoryError, UserError
from springtide.model import HeldOrder, HeldState, Payment, ReserveRequest, ReserveStatus, Restock, Sale
from springtide.sale.audit import audit
from springtide.sale.orders import bucket_of
from springtide.sale.payments import PaymentLimits, Payments
from springtide.sale.rebuild import RebuildOptions, Rebuilt, rebuild
from springtide.sale.recorder import Recorder
from tests.integration.order_path import (
    CLOCK,
    PRICE_FEN,
    Engines,
    World,
    empty_world,
    now_ms,
    small_sale,
    started_engines,
)

BUYERS = [f"b{number}" for number in range(30)]
OPTIONS = RebuildOptions(drain_s=10.0)


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    with started_engines() as engines:
        yield engines


@pytest.fixture
async def world(engines: Engines) -> AsyncIterator[World]:
    async with empty_world(engines) as world:
        yield world


async def record(world: World) -> None:
    recorder = Recorder(world.inventory, world.ledger, CLOCK, "r1")
    while await recorder.drain_once():
        pass


async def sold(world: World) -> tuple[Sale, Payments]:
    """Recorded: 60 of tea sold, b0 paid, b1 cancelled and back, b2 cancelled; a restock under way."""
    sale = small_sale()
    await world.inventory.publish(sale)
    await world.buy(sale, BUYERS, quantity=2)
    await record(world)
    payments = Payments(world.inventory, world.ledger, CLOCK, PaymentLimits())
    await payments.pay(Payment("p", "o-b0-tea", "live", "b0", 2 * PRICE_FEN))
    await payments.cancel("o-b1-tea")
    await payments.return_once()
    await payments.cancel("o-b2-tea")
    await world.ledger.add_restock(Restock("r1", "live", "cup", 5))
    return sale, payments


async def lose(world: World) -> None:
    """Valkey is killed and its data removed; it is started again with nothing."""
    store = world.engines.valkey
    os.kill(store.child.pid, signal.SIGKILL)
    await store.child.wait(CLOCK, 5.0)
    for item in store.folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
    await store.restart()
    left = None
    async with asyncio.timeout(5):
        while left is None:
            try:
                left = await world.inventory.sales()
            except InventoryError:
                await asyncio.sleep(0.02)
    assert left == []


async def reserve(world: World, sale: Sale, buyer: str, key: str, epoch: int) -> tuple[ReserveStatus, str]:
    request = ReserveRequest(buyer, key, "tea", 2, f"o-{buyer}-{key}", epoch, now_ms() + 10_000)
    (result,) = await world.inventory.reserve(sale.sale, bucket_of(buyer, sale.buckets), [request])
    return result.status, result.order_id


async def test_sale_is_back_after_its_valkey_was_killed_and_its_data_removed(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    sale, payments = await sold(world)
    last_ms = max(order.reservation.reserved_ms for order in await world.ledger.orders("live"))
    await lose(world)
    with pytest.raises(UserError, match="springtide sale rebuild live"):
        await audit(world.inventory, world.ledger, "live", CLOCK, 0.1)
    # The stock of b2 cannot go back yet, and nothing may believe that it is.
    assert await payments.return_once() == 0

    address = f"127.0.0.1:{world.engines.valkey.port}"
    dsn = world.engines.postgres.dsn
    capsys.readouterr()
    assert await run_rebuild("live", address, dsn, OPTIONS, as_json=True) == 0
    done = msgspec.json.decode(capsys.readouterr().out, type=Rebuilt)
    assert (done.epoch, done.survived, done.recorded, done.orders, done.restocks) == (2, (), 0, 30, 1)
    assert done.stock == {"tea": 100 - 2 * 28, "cup": 50}
    assert done.at_risk_from_ms is not None
    assert last_ms - 1000 < done.at_risk_from_ms <= last_ms
    assert 0 < done.at_risk_s < 60

    assert await run_audit("live", address, dsn, 5.0, as_json=True) == 0
    report = msgspec.json.decode(capsys.readouterr().out)
    assert (report["holds"], report["method"], report["epochs"], report["orders"]) == (True, "still", [2], 30)
    assert await run_audit("live", address, dsn, 5.0) == 0
    assert "proved" in capsys.readouterr().out

    for buyer in BUYERS:
        assert await reserve(world, sale, buyer, "k-tea", 2) == (ReserveStatus.REPEATED, f"o-{buyer}-tea")
    assert (await reserve(world, sale, "late", "k", 1))[0] is ReserveStatus.STALE_EPOCH
    assert (await reserve(world, sale, "new", "k", 2))[0] is ReserveStatus.RESERVED
    assert await payments.pay(Payment("p4", "o-b4-tea", "live", "b4", 2 * PRICE_FEN))
    (paid,) = await world.inventory.orders_of("live", bucket_of("b4", 2), "b4")
    assert paid.state is HeldState.PAID
    await record(world)
    assert (await audit(world.inventory, world.ledger, "live", CLOCK, 5.0)).holds


async def test_nothing_is_missing_when_the_journals_survived(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    sale, _ = await sold(world)
    await world.buy(sale, ["unrecorded"])
    # An entry that a recorder had read when it died.
    bucket = bucket_of("unrecorded", 2)
    assert len(await world.inventory.read_journal("live", bucket, "dead", 10)) == 1
    await asyncio.sleep(0.4)
    done = await rebuild(world.inventory, world.ledger, "live", CLOCK, RebuildOptions(stay_paused=True))
    assert (done.survived, done.at_risk_s, done.at_risk_from_ms, done.recorded) == ((0, 1), 0.0, None, 1)
    assert not done.opened
    assert (await reserve(world, sale, "new", "k", 2))[0] is ReserveStatus.PAUSED
    assert (await reserve(world, sale, "unrecorded", "k-tea", 1))[0] is ReserveStatus.KEY_REUSED
    assert (await audit(world.inventory, world.ledger, "live", CLOCK, 5.0)).holds
    address = f"127.0.0.1:{world.engines.valkey.port}"
    assert await run_rebuild("live", address, world.engines.postgres.dsn, OPTIONS) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "back under epoch 3: 31 orders in 2 buckets" in shown
    assert "No acknowledged purchase is missing" in shown


async def test_rebuild_that_was_cut_off_half_way_is_run_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await sold(world)
    await lose(world)
    restore = world.inventory.restore

    async def restore_some(sale: Sale, bucket: int, stock: dict[str, int], orders: list[HeldOrder]) -> None:
        await restore(sale, bucket, stock, orders)
        if bucket == 1:
            raise InventoryError("cut off")

    monkeypatch.setattr(world.inventory, "restore", restore_some)
    with pytest.raises(InventoryError, match="cut off"):
        await rebuild(world.inventory, world.ledger, "live", CLOCK, OPTIONS)
    monkeypatch.undo()
    # The first bucket is missing, so nothing sells and nothing proves itself.
    assert await world.inventory.view("live") is None
    done = await rebuild(world.inventory, world.ledger, "live", CLOCK, OPTIONS)
    assert (done.epoch, done.survived, done.orders) == (3, (), 30)
    assert (await audit(world.inventory, world.ledger, "live", CLOCK, 5.0)).holds


async def test_what_cannot_be_rebuilt_is_said(world: World) -> None:
    await world.ledger.create_sale(small_sale())
    with pytest.raises(UserError, match="a draft"):
        await rebuild(world.inventory, world.ledger, "live", CLOCK, OPTIONS)
    with pytest.raises(UserError, match=r"no sale 'other'; it has: live"):
        await rebuild(world.inventory, world.ledger, "other", CLOCK, OPTIONS)
