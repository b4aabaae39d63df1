"""What every ledger promises of sales under way, restocks, refunds, keys and token generations."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from springtide.drivers.embedded_postgres import EmbeddedPostgres
from springtide.errors import LedgerError, LedgerUnavailable
from springtide.model import ApiKey, OrderQuery, OrderState, Restock, Role, Sale, SaleStage, Sku, TokenRing
from springtide.ports import Ledger
from tests.contract.ledgers import PRICE_FEN, SALE, empty_ledger, now_ms, order, payment, started_server

WHOLE = Sale(
    sale="whole",
    title="Whole",
    skus=(Sku("tea", "Tea", PRICE_FEN, 100, per_buyer_max=9, spread=True), Sku("cup", "Cup", 900, 50)),
    opens_ms=5,
    closes_ms=2_000_000_000_000,
    hold_ms=60_000,
    epoch=3,
    buckets=4,
    waiting_room=True,
    pay_url="https://shop.example/pay/{sale}/{order_id}",
)
RESTOCK = Restock("r1", "live", "tea", 25)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with started_server() as server:
        yield server


@pytest.fixture(params=["postgres", "memory"])
async def ledger(request: pytest.FixtureRequest, server: EmbeddedPostgres) -> AsyncIterator[Ledger]:
    async with empty_ledger(request.param, server) as made:
        yield made


async def stage(ledger: Ledger, sale: str) -> tuple[SaleStage, int]:
    record = await ledger.sale_record(sale)
    assert record is not None
    return record.stage, record.revision


async def definition(ledger: Ledger, sale: str) -> Sale:
    record = await ledger.sale_record(sale)
    assert record is not None
    return record.sale


# --- sales ----------------------------------------------------------------------------------------


async def test_draft_is_kept_whole_and_its_id_is_taken(ledger: Ledger) -> None:
    before_ms = now_ms()
    assert await ledger.create_sale(WHOLE)
    record = await ledger.sale_record("whole")
    assert record is not None
    assert (record.sale, record.stage, record.revision) == (WHOLE, SaleStage.DRAFT, 1)
    assert before_ms <= record.changed_ms <= now_ms()
    assert not await ledger.create_sale(msgspec.structs.replace(WHOLE, title="Other"))
    assert await definition(ledger, "whole") == WHOLE
    assert await ledger.sale_record("other") is None


async def test_publishing_a_draft_publishes_what_is_given(ledger: Ledger) -> None:
    await ledger.create_sale(msgspec.structs.replace(WHOLE, title="Draft", skus=(Sku("old", "Old", 1, 1),)))
    await ledger.publish(WHOLE)
    assert await definition(ledger, "whole") == WHOLE
    assert await stage(ledger, "whole") == (SaleStage.PUBLISHED, 2)
    await ledger.publish(msgspec.structs.replace(WHOLE, title="Again"))
    assert await definition(ledger, "whole") == WHOLE
    assert await stage(ledger, "whole") == (SaleStage.PUBLISHED, 2)


async def test_draft_is_replaced_as_a_whole(ledger: Ledger) -> None:
    await ledger.create_sale(WHOLE)
    other = msgspec.structs.replace(WHOLE, skus=(Sku("cup", "Cups", 7, 9), Sku("pot", "Pot", 8, 3)), buckets=2, epoch=1)
    assert await ledger.change_sale(other, 1)
    assert await definition(ledger, "whole") == other
    assert await stage(ledger, "whole") == (SaleStage.DRAFT, 2)


async def test_published_sale_keeps_stock_spread_and_buckets(ledger: Ledger) -> None:
    await ledger.publish(WHOLE)
    tea, cup, pot = Sku("tea", "Teas", 1, 7, 2), Sku("cup", "Cups", 2, 8, 3, spread=True), Sku("pot", "Pot", 3, 9, 4)
    wanted = msgspec.structs.replace(
        WHOLE, title="New", skus=(pot, cup, tea), opens_ms=6, hold_ms=9000, waiting_room=False, pay_url="", buckets=9
    )
    assert await ledger.change_sale(msgspec.structs.replace(wanted, epoch=1), 1)
    found = await definition(ledger, "whole")
    assert found.skus == (
        Sku("pot", "Pot", 3, 0, 4),
        Sku("cup", "Cups", 2, 50, 3),
        Sku("tea", "Teas", 1, 100, 2, spread=True),
    )
    assert found == msgspec.structs.replace(wanted, skus=found.skus, buckets=4, epoch=3)
    assert [one.sku for one in await ledger.totals("whole")] == ["pot", "cup", "tea"]
    assert await ledger.change_sale(msgspec.structs.replace(found, epoch=4), 2)
    assert (await definition(ledger, "whole")).epoch == 4


async def test_of_two_changes_to_one_revision_one_is_made(ledger: Ledger) -> None:
    await ledger.publish(WHOLE)
    changes = [msgspec.structs.replace(WHOLE, title=f"t{number}") for number in range(8)]
    made = await asyncio.gather(*[ledger.change_sale(change, 1) for change in changes])
    assert sorted(made) == [False] * 7 + [True]
    assert (await definition(ledger, "whole")).title == changes[made.index(True)].title
    assert (await stage(ledger, "whole"))[1] == 2


async def test_change_that_cannot_be_is_refused_whole(ledger: Ledger) -> None:
    await ledger.publish(WHOLE)
    with pytest.raises(LedgerError, match="would lose tea"):
        await ledger.change_sale(msgspec.structs.replace(WHOLE, title="New", skus=WHOLE.skus[1:]), 1)
    with pytest.raises(LedgerError, match="no sale nothing"):
        await ledger.change_sale(msgspec.structs.replace(WHOLE, sale="nothing"), 1)
    assert await definition(ledger, "whole") == WHOLE
    await ledger.close_sale("whole")
    with pytest.raises(LedgerError, match="closed for good"):
        await ledger.change_sale(WHOLE, 2)


async def test_of_a_closed_sale_the_epoch_may_still_grow(ledger: Ledger) -> None:
    await ledger.publish(WHOLE)
    await ledger.close_sale("whole")
    assert await ledger.change_sale(msgspec.structs.replace(WHOLE, title="New", epoch=4), 2)
    assert await definition(ledger, "whole") == msgspec.structs.replace(WHOLE, epoch=4)
    assert await stage(ledger, "whole") == (SaleStage.CLOSED, 3)


async def test_closed_sale_stays_closed_and_can_be_read(ledger: Ledger) -> None:
    await ledger.publish(SALE)
    await ledger.record([order(1)])
    for _ in range(2):
        await ledger.close_sale("live")
        assert await stage(ledger, "live") == (SaleStage.CLOSED, 2)
    await ledger.publish(SALE)
    assert await stage(ledger, "live") == (SaleStage.CLOSED, 2)
    await ledger.record([order(2)])
    assert (await ledger.totals("live"))[0].reserved == 2


async def test_sales_are_listed_by_pages(ledger: Ledger) -> None:
    sales = [msgspec.structs.replace(WHOLE, sale=f"s{number}", title=f"t{number}") for number in (3, 1, 2)]
    for sale in sales:
        await ledger.create_sale(sale)
    assert [record.sale for record in await ledger.sale_records("", 10)] == [sales[1], sales[2], sales[0]]
    assert [record.sale.sale for record in await ledger.sale_records("", 2)] == ["s1", "s2"]
    assert [record.sale.sale for record in await ledger.sale_records("s2", 2)] == ["s3"]


# --- restocks -------------------------------------------------------------------------------------


async def test_restock_counts_at_once_and_as_returning_until_it_is_closed(ledger: Ledger) -> None:
    await ledger.publish(SALE)
    assert await ledger.add_restock(RESTOCK)
    assert not await ledger.add_restock(RESTOCK)
    assert await ledger.add_restock(Restock("r2", "live", "tea", 5))
    tea, cup = await ledger.totals("live")
    assert (tea.initial, tea.restocked, tea.returning, cup.restocked) == (100, 30, 30, 0)
    assert await ledger.open_restocks(10) == [RESTOCK, Restock("r2", "live", "tea", 5)]
    assert await ledger.open_restocks(1) == [RESTOCK]
    for _ in range(2):
        await ledger.close_restocks(["r1", "unknown"])
    tea, _ = await ledger.totals("live")
    assert (tea.initial, tea.restocked, tea.returning) == (100, 30, 5)
    assert not await ledger.add_restock(RESTOCK)
    assert [one.restock_id for one in await ledger.open_restocks(10)] == ["r2"]


async def test_the_same_restock_at_once_counts_once(ledger: Ledger) -> None:
    await ledger.publish(SALE)
    added = await asyncio.gather(*[ledger.add_restock(RESTOCK) for _ in range(8)])
    assert sum(added) == 1
    assert (await ledger.totals("live"))[0].restocked == 25


async def test_restock_that_cannot_be_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="unknown"):
        await ledger.add_restock(RESTOCK)
    await ledger.create_sale(SALE)
    with pytest.raises(LedgerError, match="draft"):
        await ledger.add_restock(RESTOCK)
    await ledger.publish(SALE)
    with pytest.raises(LedgerError, match="no SKU pot"):
        await ledger.add_restock(Restock("r1", "live", "pot", 1))
    await ledger.add_restock(RESTOCK)
    with pytest.raises(LedgerError, match="another one") as caught:
        await ledger.add_restock(Restock("r1", "live", "tea", 26))
    assert not isinstance(caught.value, LedgerUnavailable)
    await ledger.close_sale("live")
    with pytest.raises(LedgerError, match="closed"):
        await ledger.add_restock(Restock("r3", "live", "tea", 1))
    assert not await ledger.add_restock(RESTOCK)
    assert (await ledger.totals("live"))[0].restocked == 25


# --- orders and refunds ---------------------------------------------------------------------------


async def test_orders_are_found_by_every_field_and_by_pages(ledger: Ledger) -> None:
    await ledger.publish(SALE)
    orders = [msgspec.structs.replace(order(number), buyer=f"b{number % 2}") for number in range(6)]
    await ledger.record([*orders, order(9, sku="cup")])
    await ledger.cancel("o3")

    async def found(**wanted: object) -> list[str]:
        query = msgspec.convert({"sale": "live"} | wanted, OrderQuery)
        return [one.reservation.order_id for one in await ledger.search_orders(query)]

    assert await found() == ["o0", "o1", "o2", "o3", "o4", "o5", "o9"]
    assert await found(count=2) == ["o0", "o1"]
    assert await found(after="o1", count=3) == ["o2", "o3", "o4"]
    assert await found(buyer="b1") == ["o1", "o3", "o5"]
    assert await found(buyer="b1", after="o1", count=1) == ["o3"]
    assert await found(buyer="b1", state=OrderState.CANCELLED) == ["o3"]
    assert await found(sku="cup") == ["o9"]
    assert await found(state="cancelled") == ["o3"]
    assert await found(order_id="o3") == ["o3"]
    assert await found(order_id="o3", state="reserved") == []
    assert await found(order_id="o3", buyer="b0") == []
    assert await found(sale="other") == []


async def test_refunds_that_are_due_are_listed_and_seen(ledger: Ledger) -> None:
    await ledger.publish(SALE)
    await ledger.publish(msgspec.structs.replace(SALE, sale="second"))
    other = msgspec.structs.replace(order(5), sale="second")
    await ledger.record([order(1), order(2), other])
    await ledger.pay(payment(order(1), "a-accepted"))
    await ledger.pay(payment(order(1), "b-twice"))
    await ledger.pay(payment(order(2), "c-wrong", 7))
    await ledger.cancel("o5")
    await ledger.pay(payment(other, "d-late"))
    twice, wrong, late = await ledger.refunds("", "", 10)
    assert (twice.payment_id, twice.order_id, twice.sale, twice.buyer) == ("b-twice", "o1", "live", "b1")
    assert (twice.amount_fen, twice.seen_ms) == (PRICE_FEN, None)
    assert abs(twice.received_ms - now_ms()) < 10_000
    assert (wrong.payment_id, wrong.amount_fen, late.payment_id, late.sale) == ("c-wrong", 7, "d-late", "second")
    assert await ledger.refunds("live", "", 10) == [twice, wrong]
    assert await ledger.refunds("live", "b-twice", 10) == [wrong]
    assert await ledger.refunds("", "", 1) == [twice]
    assert await ledger.see_refund("c-wrong")
    seen_ms = (await ledger.refunds("live", "b-twice", 10))[0].seen_ms
    assert seen_ms is not None
    assert await ledger.see_refund("c-wrong")
    assert (await ledger.refunds("live", "b-twice", 10))[0].seen_ms == seen_ms
    assert not await ledger.see_refund("a-accepted")
    assert not await ledger.see_refund("nothing")


# --- keys and tokens ------------------------------------------------------------------------------


def key(number: int) -> ApiKey:
    return ApiKey(f"k{number}", f"key {number}", Role.OPERATOR, "ab" * 32, 1_700_000_000_000 - number)


async def test_api_keys_are_kept_and_revoked(ledger: Ledger) -> None:
    for number in (2, 1):
        await ledger.add_api_key(key(number))
    await ledger.add_api_key(key(2))
    assert await ledger.api_keys() == [key(2), key(1)]
    with pytest.raises(LedgerError, match="k2 is taken"):
        await ledger.add_api_key(msgspec.structs.replace(key(2), role=Role.OWNER))
    assert await ledger.revoke_api_key("k2")
    revoked = (await ledger.api_keys())[0]
    assert revoked.revoked_ms is not None
    assert msgspec.structs.replace(revoked, revoked_ms=None) == key(2)
    assert await ledger.revoke_api_key("k2")
    assert (await ledger.api_keys())[0] == revoked
    assert not await ledger.revoke_api_key("k9")


async def test_api_keys_are_bounded(ledger: Ledger) -> None:
    for first in range(0, 1000, 100):
        await asyncio.gather(*[ledger.add_api_key(key(number)) for number in range(first, first + 100)])
    await ledger.add_api_key(key(0))
    with pytest.raises(LedgerError, match="1000 keys"):
        await ledger.add_api_key(key(1000))
    assert len(await ledger.api_keys()) == 1000


async def test_token_ring_is_kept(ledger: Ledger) -> None:
    assert await ledger.token_ring() == TokenRing(1, 1)
    for ring in (TokenRing(1, 2), TokenRing(2, 3)):
        await ledger.set_token_ring(ring)
        assert await ledger.token_ring() == ring
