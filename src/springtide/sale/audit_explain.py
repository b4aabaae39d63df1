"""Why the stock equation of a sale is out: what both sides say of single orders, and what is under way."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence

import msgspec

from springtide.model import BucketCut, HeldOrder, HeldState, Order, Reservation, Sale
from springtide.ports import Inventory, Ledger
from springtide.sale.orders import bucket_of, frees_stock

FINDINGS_MAX = 1000
"""Findings that a report names, of each kind."""

BUYERS_MAX = 20_000
"""Buyers whose orders are compared."""

_AT_ONCE = 64


class Books(msgspec.Struct, frozen=True):
    """What an audit read of a sale: its cuts, the ledger's orders, and the SKUs whose equation is out."""

    sale: Sale
    cuts: tuple[BucketCut, ...]
    orders: tuple[Order, ...]
    out: frozenset[str]


async def explain(inventory: Inventory, ledger: Ledger, books: Books) -> tuple[str, ...]:
    """Units under way, and the orders that only one side has or that it sees otherwise; at most FINDINGS_MAX lines."""
    found = [*_transfers(books), *await _under_way(ledger, books), *await _unrecorded(inventory, books)]
    found += await _order_by_order(inventory, ledger, books)
    return tuple(found[:FINDINGS_MAX])


def _transfers(books: Books) -> Iterator[str]:
    for cut in books.cuts:
        for one in cut.transfers:
            if one.sku in books.out:
                yield (
                    f"transfer {one.transfer_id}: {one.quantity} of {one.sku} left bucket {one.source} for "
                    f"{one.target}; they count twice if they have arrived and it has not been closed"
                )


async def _under_way(ledger: Ledger, books: Books) -> list[str]:
    returns = [
        f"order {row.order_id}: {row.quantity} of {row.sku} are on their way back, or back and not yet closed"
        for row in await ledger.returns(FINDINGS_MAX)
        if row.sale == books.sale.sale and row.sku in books.out
    ]
    restocks = [
        f"restock {row.restock_id}: {row.quantity} of {row.sku} are on their way, or in stock and not yet closed"
        for row in await ledger.open_restocks(FINDINGS_MAX)
        if row.sale == books.sale.sale and row.sku in books.out
    ]
    return returns + restocks


async def _unrecorded(inventory: Inventory, books: Books) -> list[str]:
    depths = await asyncio.gather(*[inventory.journal_depth(books.sale.sale, cut.bucket) for cut in books.cuts])
    return [
        f"bucket {cut.bucket}: {depth} entries of its journal are not in the ledger"
        for cut, depth in zip(books.cuts, depths, strict=True)
        if depth
    ]


async def _order_by_order(inventory: Inventory, ledger: Ledger, books: Books) -> list[str]:
    """Compare buyer by buyer. Orders later than the cut are left out: the audit did not count them either."""
    sale = books.sale
    known: defaultdict[str, dict[str, Order]] = defaultdict(dict)
    for order in books.orders:
        known[order.reservation.buyer][order.reservation.order_id] = order
    buyers = dict.fromkeys(known)
    for cut in books.cuts:
        buyers.update(dict.fromkeys((await inventory.holders(sale.sale, cut.bucket, "")).buyers))
    open_returns = {row.order_id for row in await ledger.returns(FINDINGS_MAX)}
    found: list[str] = []
    asked = list(buyers)[:BUYERS_MAX]
    for first in range(0, len(asked), _AT_ONCE):
        some = asked[first : first + _AT_ONCE]
        calls = [inventory.orders_of(sale.sale, bucket_of(buyer, sale.buckets), buyer) for buyer in some]
        for buyer, held in zip(some, await asyncio.gather(*calls), strict=True):
            found += _compare(books, known.get(buyer, {}), held, open_returns)
            if len(found) >= FINDINGS_MAX:
                return found
    if len(buyers) > BUYERS_MAX:
        found.append(f"{len(buyers) - BUYERS_MAX:,} more buyers were not compared")
    return found


def _compare(books: Books, known: dict[str, Order], held: Sequence[HeldOrder], open_returns: set[str]) -> Iterator[str]:
    """What differs between a buyer's orders in the ledger and in the inventory."""
    cut_ms = {cut.bucket: cut.at_ms for cut in books.cuts}
    here = {one.reservation.order_id: one for one in held}
    for order_id in known.keys() | here.keys():
        order, mine = known.get(order_id), here.get(order_id)
        one = order.reservation if order else here[order_id].reservation
        if one.sku not in books.out or one.reserved_ms > cut_ms[one.bucket]:
            continue
        what = _difference(order, mine, closed=order_id not in open_returns)
        if what:
            yield f"order {order_id}: {one.quantity} of {one.sku} {what}"


def _difference(order: Order | None, mine: HeldOrder | None, *, closed: bool) -> str:
    is_free = order is None or frees_stock(order.state)
    is_back = mine is None or mine.state is HeldState.ENDED
    if order is not None and mine is not None and _content(order.reservation) != _content(mine.reservation):
        what = f"in the ledger as {order.reservation}, in the inventory as {mine.reservation}"
    elif is_free is is_back or (order is not None and is_free and not closed):
        what = ""
    elif order is None:
        what = "are sold in the inventory, unknown to the ledger"
    elif is_free:
        what = f"are {order.state} in the ledger and back, and still sold in the inventory"
    else:
        what = f"are {order.state} in the ledger, {'unknown to' if mine is None else 'back in stock in'} the inventory"
    return what


def _content(one: Reservation) -> tuple[str, str, str, int]:
    return one.buyer, one.key, one.sku, one.quantity
