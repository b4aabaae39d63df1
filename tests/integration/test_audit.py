"""The audit finds nothing where nothing is wrong, and each thing that can be wrong."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import asyncpg
import msgspec
import pytest
from rich.console import Console

from springtide.cli.audit import remarks, show, to_json
from springtide.errors import UserError
from springtide.model import Order, OrderState, Payment, Reservation, Restock, Sale, StockReturn, Transfer
from springtide.sale.audit import AuditReport, audit, compare_acknowledged
from springtide.sale.orders import bucket_of, home_of
from springtide.sale.payments import PaymentLimits, Payments
from springtide.sale.recorder import Recorder
from tests.integration.order_path import (
    CLOCK,
    PRICE_FEN,
    Engines,
    World,
    empty_world,
    small_sale,
    started_engines,
)


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


async def sold(world: World) -> Sale:
    """A sale with orders in every state: 20 of tea sold, b0 paid, b1 cancelled and back, b2 cancelled."""
    sale = small_sale()
    await world.inventory.publish(sale)
    await world.buy(sale, [f"b{number}" for number in range(10)], quantity=2)
    await record(world)
    payments = Payments(world.inventory, world.ledger, CLOCK, PaymentLimits())
    await payments.pay(Payment("p", "o-b0-tea", "live", "b0", 2 * PRICE_FEN))
    await payments.cancel("o-b1-tea")
    await payments.return_once()
    await payments.cancel("o-b2-tea")
    return sale


async def look(world: World, wait_s: float = 0.3) -> AuditReport:
    report = await audit(world.inventory, world.ledger, "live", CLOCK, wait_s)
    assert msgspec.json.decode(msgspec.json.encode(report), type=AuditReport) == report
    return report


async def test_equation_holds_with_orders_in_every_state(world: World) -> None:
    await sold(world)
    report = await look(world, 5.0)
    assert report.holds
    assert (report.settled, report.method, report.orders) == (True, "still", 10)
    assert report.differences == {"tea": 0, "cup": 0}
    tea = report.skus[0]
    assert (tea.stock, tea.totals.reserved, tea.totals.paid, tea.totals.returning) == (82, 14, 2, 2)
    assert report.explanations == ()


async def test_nothing_sold_holds_too(world: World) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    await world.ledger.publish(sale)
    assert (await look(world)).holds


async def test_unknown_sale_is_said(world: World) -> None:
    await world.inventory.publish(small_sale())
    with pytest.raises(UserError, match=r"no sale 'nope'.*live"):
        await audit(world.inventory, world.ledger, "nope", CLOCK, 0.1)


async def test_ledger_that_does_not_reach_the_cut_is_not_settled(world: World) -> None:
    sale = await sold(world)
    await world.buy(sale, ["unrecorded"])
    report = await look(world)
    assert not report.settled
    assert not report.holds
    assert report.waited_s >= 0.3


async def test_audit_waits_for_the_recorder(world: World) -> None:
    sale = await sold(world)
    await world.buy(sale, ["later"])
    auditing = asyncio.create_task(look(world, 5.0))
    await asyncio.sleep(0.1)
    assert not auditing.done()
    await record(world)
    assert (await auditing).holds


async def test_audit_of_a_sale_that_goes_on_holds(world: World) -> None:
    sale = small_sale()
    await world.inventory.publish(sale)
    recorder = Recorder(world.inventory, world.ledger, CLOCK, "r1")
    recording = asyncio.create_task(recorder.run())
    selling = asyncio.create_task(sell(world, sale))
    await asyncio.sleep(0.1)
    report = await look(world, 0.5)
    moving = not selling.done()
    await selling
    assert moving
    assert report.settled
    assert report.differences == {"tea": 0, "cup": 0}
    assert (await look(world, 5.0)).holds
    recorder.stop()
    await recording


async def sell(world: World, sale: Sale) -> None:
    for number in range(90):
        await world.buy(sale, [f"c{number}"])
        await asyncio.sleep(0.01)


async def test_lost_order_is_a_difference_below_nought(world: World) -> None:
    await sold(world)
    connection = await asyncpg.connect(world.engines.postgres.dsn)
    await connection.execute("DELETE FROM orders WHERE order_id = 'o-b5-tea'")
    await connection.close()
    report = await look(world)
    assert not report.holds
    assert report.differences == {"tea": -2, "cup": 0}


async def test_order_that_the_inventory_never_sold_is_found_and_named(world: World) -> None:
    await sold(world)
    stray = Reservation("stray", "live", bucket_of("zz", 2), "zz", "k", "tea", 3, 1, 2_000_000_000_000)
    await world.ledger.record([stray])
    report = await look(world)
    assert not report.holds
    assert report.differences["tea"] == 3
    assert any("stray" in line and "unknown to the inventory" in line for line in report.explanations)


async def test_return_that_is_not_closed_is_named(world: World) -> None:
    await sold(world)
    one = StockReturn("o-b2-tea", "live", bucket_of("b2", 2), "b2", "tea", 2)
    assert await world.inventory.give_back(one)
    report = await look(world)
    assert report.differences["tea"] == 2
    assert any("o-b2-tea" in line and "way back" in line for line in report.explanations)
    await world.ledger.close_returns(["o-b2-tea"])
    assert (await look(world)).holds


async def test_units_between_two_buckets_are_stock(world: World) -> None:
    sale = await sold(world)
    moving = Transfer("t1", "live", 0, 1, "tea", 5)
    debit = await world.inventory.debit(moving)
    report = await look(world)
    assert report.holds
    assert (report.skus[0].stock, report.moving) == (82, {"tea": 5})
    assert any("5 of tea" in line for line in remarks(report))
    # Arrived, and not closed: they count twice, which the report explains.
    await world.inventory.credit(moving, debit)
    report = await look(world)
    assert report.differences["tea"] == 5
    assert any("transfer t1: 5 of tea" in line for line in report.explanations)
    await world.inventory.end_transfer(moving)
    assert (await look(world)).holds
    assert (await world.stock(sale))["tea"] == 82


async def test_restocks_are_part_of_the_equation_from_their_first_moment(world: World) -> None:
    await sold(world)
    restock = Restock("r1", "live", "cup", 9)
    await world.ledger.add_restock(restock)
    report = await look(world)
    assert report.holds
    assert (report.skus[1].stock, report.skus[1].totals.restocked, report.skus[1].totals.returning) == (50, 9, 9)
    await world.inventory.restock(home_of("cup", 2), restock)
    report = await look(world)
    assert report.differences["cup"] == 9
    assert any("restock r1: 9 of cup" in line for line in report.explanations)
    await world.ledger.close_restocks(["r1"])
    report = await look(world)
    assert report.holds
    assert report.skus[1].stock == 59


async def test_each_order_that_one_side_sees_otherwise_is_named(world: World) -> None:
    await sold(world)
    connection = await asyncpg.connect(world.engines.postgres.dsn)
    await connection.execute("DELETE FROM orders WHERE order_id = 'o-b5-tea'")
    # Ended in the ledger, and nobody gives the stock back.
    await connection.execute("UPDATE orders SET state = 'expired' WHERE order_id = 'o-b6-tea'")
    await connection.close()
    # Given back in the inventory, and alive in the ledger.
    await world.inventory.give_back(StockReturn("o-b7-tea", "live", bucket_of("b7", 2), "b7", "tea", 2))
    report = await look(world)
    assert report.differences["tea"] == -2
    lines = {line.split(":")[0]: line for line in report.explanations if line.startswith("order")}
    assert "sold in the inventory, unknown to the ledger" in lines["order o-b5-tea"]
    assert "expired in the ledger and back, and still sold" in lines["order o-b6-tea"]
    assert "reserved in the ledger, back in stock in the inventory" in lines["order o-b7-tea"]
    assert {name for name in lines if "b2-tea" not in name} == {"order o-b5-tea", "order o-b6-tea", "order o-b7-tea"}


async def test_conflicts_and_a_rebuild_that_was_cut_off_are_no_proof(world: World) -> None:
    sale = await sold(world)
    double = Reservation("double", "live", bucket_of("b3", 2), "b3", "k-tea", "tea", 2, 1, 2)
    await world.ledger.record([double])
    report = await look(world)
    assert report.conflicts == ("order double of buyer b3: key k-tea had another order",)
    assert not report.holds
    await world.ledger.change_sale(msgspec.structs.replace(sale, epoch=2), 1)
    report = await look(world)
    assert (report.epochs, report.holds) == ((1, 2), False)
    assert any("rebuild" in line for line in remarks(report))
    console = Console(record=True, width=120)
    show(report, console)
    assert "not proved" in console.export_text()
    assert msgspec.json.decode(to_json(report))["holds"] is False


async def test_journal_that_is_not_recorded_is_said(world: World) -> None:
    sale = await sold(world)
    await world.buy(sale, ["unrecorded"])
    report = await look(world)
    bucket = bucket_of("unrecorded", 2)
    assert f"bucket {bucket}: 1 entries of its journal are not in the ledger" in report.explanations


async def test_overselling_and_a_broken_limit_are_found(world: World) -> None:
    await sold(world)
    greedy = Reservation("greedy", "live", bucket_of("g", 2), "g", "k", "cup", 60, 1, 2_000_000_000_000)
    await world.ledger.record([greedy])
    report = await look(world)
    assert report.oversold == 10
    assert report.limit_violations == ("buyer g holds 60 of cup, the limit is 1",)
    assert not report.holds


def order(order_id: str, buyer: str = "b", key: str = "k", quantity: int = 1) -> Order:
    one = Reservation(order_id, "live", 0, buyer, key, "tea", quantity, 1, 2)
    return Order(one, OrderState.RESERVED, PRICE_FEN)


def test_kept_promises_compare_clean() -> None:
    found = compare_acknowledged(
        [order("o1", "b1"), order("o2", "b2")],
        [("o1", "b1", "k", "tea", 1), ("o2", "b2", "k", "tea", 1), ("o1", "b1", "k", "tea", 1)],
    )
    assert (found.lost, found.duplicates, found.mismatched) == ((), (), ())


def test_broken_promises_are_named() -> None:
    found = compare_acknowledged(
        [order("o1", "b1"), order("o2", "b2", quantity=2), order("o3", "b3"), order("o4", "b3")],
        [
            ("o1", "b1", "k", "tea", 1),
            ("o2", "b2", "k", "tea", 1),
            ("o5", "b5", "k", "tea", 1),
            ("o6", "b1", "k", "tea", 1),
        ],
    )
    assert found.lost == ("o5", "o6")
    assert found.duplicates == ("o4", "o6")
    assert found.mismatched == ("o2",)


def test_order_that_stands_twice_is_a_duplicate() -> None:
    assert compare_acknowledged([order("o1"), order("o1")], []).duplicates == ("o1",)
