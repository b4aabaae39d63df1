"""The embedded Valkey, its crash, and the connection to it: on the real server."""

import asyncio
import itertools
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from typing_extensions import override

from springtide.drivers.embedded_valkey import EmbeddedValkey, start_valkey
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.drivers.valkey_wire import CALLS_IN_FLIGHT_MAX
from springtide.errors import EngineError, InventoryError, InventoryUnavailable, OutcomeUnknown
from springtide.model import Reservation, ReserveRequest, ReserveResult, ReserveStatus, Sale, Sku, StockReturn

CLOCK = SystemClock()
HOUR_MS = 3_600_000
RESERVED, REPEATED = ReserveStatus.RESERVED, ReserveStatus.REPEATED
_numbers = itertools.count()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedValkey]:
    server = await start_valkey(tmp_path / "valkey", CLOCK)
    yield server
    os.kill(server.child.pid, signal.SIGCONT) if server.child.returncode is None else None
    await server.stop()


@pytest.fixture
async def inventory(server: EmbeddedValkey) -> AsyncIterator[ValkeyInventory]:
    inventory = await ValkeyInventory.connect(server.host, server.port, CLOCK, timeout_s=1.0)
    yield inventory
    await inventory.close()


def a_sale(stock: int = 1000, per_buyer_max: int = 1) -> Sale:
    now_ms = CLOCK.now_ms()
    skus = (Sku("tea", "Tea", 500, stock, per_buyer_max),)
    return Sale(f"sale-{next(_numbers)}", "Tea", skus, now_ms - HOUR_MS, now_ms + HOUR_MS, 60_000)


def want(buyer: str, key: str = "k1", deadline_in_ms: int = HOUR_MS) -> ReserveRequest:
    return ReserveRequest(buyer, key, "tea", 1, f"o-{next(_numbers)}", 1, CLOCK.now_ms() + deadline_in_ms)


async def until_back(inventory: ValkeyInventory) -> None:
    for _ in range(500):
        try:
            await inventory.sales()
        except InventoryError:
            await asyncio.sleep(0.01)
        else:
            return
    pytest.fail("the connection was not restored within 5 s")


async def whole_journal(inventory: ValkeyInventory, sale: str) -> list[Reservation]:
    orders: list[Reservation] = []
    while entries := await inventory.read_journal(sale, 0, "test", 1000):
        orders += [order for entry in entries for order in entry.reservations]
        await inventory.acknowledge(sale, 0, [entry.entry_id for entry in entries])
    return orders


def kill(server: EmbeddedValkey) -> None:
    server.child.signal(signal.SIGKILL)


async def until_dead(server: EmbeddedValkey) -> None:
    assert await server.child.wait(CLOCK, 5.0) == -signal.SIGKILL


# --- the engine -------------------------------------------------------------------------------------------


async def test_a_port_in_use_is_named_with_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=rf"127.0.0.1:{port}: the port is in use; .* name another"):
            await start_valkey(tmp_path, CLOCK, port)
    assert not (tmp_path / "valkey.log").exists()


async def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"file/valkey: Not a directory; name a folder that you may write to"):
        await start_valkey(tmp_path / "file" / "valkey", CLOCK)


async def test_an_engine_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("not a manifest\n")
    with pytest.raises(EngineError, match=r"ended at once with status 1; see .*valkey\.log"):
        await start_valkey(tmp_path, CLOCK)


async def test_the_engine_is_set_up_for_durability(inventory: ValkeyInventory) -> None:
    names = (
        "appendonly",
        "appendfsync",
        "no-appendfsync-on-rewrite",
        "maxmemory-policy",
        "save",
        "bind",
        "protected-mode",
    )
    reply = await (await inventory._store.primaries())[0].call("CONFIG", "GET", *names)
    assert dict(zip(reply[::2], reply[1::2], strict=True)) == {
        b"appendonly": b"yes",
        b"appendfsync": b"always",
        b"no-appendfsync-on-rewrite": b"no",
        b"maxmemory-policy": b"noeviction",
        b"save": b"",
        b"bind": b"127.0.0.1",
        b"protected-mode": b"yes",
    }


async def test_a_stopped_engine_starts_again_with_its_data_on_its_port(server: EmbeddedValkey) -> None:
    port = server.port
    inventory = await ValkeyInventory.connect(server.host, port, CLOCK)
    sale = a_sale()
    await inventory.publish(sale)
    await inventory.close()
    await server.restart()
    assert server.port == port
    again = await ValkeyInventory.connect(server.host, port, CLOCK)
    view = await again.view(sale.sale)
    await again.close()
    assert view is not None
    assert view.sale == sale


# --- a crash ----------------------------------------------------------------------------------------------


class Crowd:
    """Buyers who send batches, and note what they were told, over a crash."""

    def __init__(self, inventory: ValkeyInventory, sale: str) -> None:
        self.acknowledged: dict[str, str] = {}
        self.unknown: list[ReserveRequest] = []
        self._inventory = inventory
        self._sale = sale

    async def buy_until_it_breaks(self, name: str) -> None:
        for round_number in itertools.count():
            batch = [want(f"{name}-{round_number}-{n}") for n in range(16)]
            try:
                results = await self._inventory.reserve(self._sale, 0, batch)
            except OutcomeUnknown:
                self.unknown += batch
                return
            except InventoryUnavailable:
                return
            self.note(batch, results)

    def note(self, batch: list[ReserveRequest], results: list[ReserveResult]) -> None:
        for request, result in zip(batch, results, strict=True):
            assert result.status in {RESERVED, REPEATED}
            self.acknowledged[request.buyer] = result.order_id


async def test_what_was_acknowledged_before_a_crash_is_in_stock_and_journal_after_it(
    server: EmbeddedValkey, inventory: ValkeyInventory
) -> None:
    sale = a_sale(stock=1_000_000)
    await inventory.publish(sale)
    crowd = Crowd(inventory, sale.sale)
    buyers = [asyncio.create_task(crowd.buy_until_it_breaks(f"b{n}")) for n in range(8)]
    while len(crowd.acknowledged) < 2000:
        await asyncio.sleep(0.005)
    kill(server)
    await asyncio.gather(*buyers)
    await until_dead(server)
    assert crowd.unknown
    await server.restart()
    await until_back(inventory)

    # The unknown ones are repeated with their keys; what was taken before is not taken again.
    repeated = list(crowd.unknown)
    crowd.note(repeated, await inventory.reserve(sale.sale, 0, repeated))
    orders = await whole_journal(inventory, sale.sale)
    assert len({order.order_id for order in orders}) == len(orders)
    assert {order.buyer: order.order_id for order in orders} == crowd.acknowledged
    cut = await inventory.cut(sale.sale, 0)
    assert cut.stock["tea"] == 1_000_000 - len(orders)


async def test_a_return_of_stock_survives_a_crash_and_is_not_done_again(
    server: EmbeddedValkey, inventory: ValkeyInventory
) -> None:
    sale = a_sale(stock=5)
    await inventory.publish(sale)
    (result,) = await inventory.reserve(sale.sale, 0, [want("ann")])
    back = StockReturn(result.order_id, sale.sale, 0, "ann", "tea", 1)
    assert await inventory.give_back(back)
    kill(server)
    await until_dead(server)
    await server.restart()
    await until_back(inventory)
    assert not await inventory.give_back(back)
    assert (await inventory.cut(sale.sale, 0)).stock["tea"] == 5


async def test_entries_given_to_a_reader_before_a_crash_are_read_again_after_it(
    server: EmbeddedValkey, inventory: ValkeyInventory
) -> None:
    sale = a_sale()
    await inventory.publish(sale)
    for buyer in ("ann", "bob", "cid"):
        await inventory.reserve(sale.sale, 0, [want(buyer)])
    entries = await inventory.read_journal(sale.sale, 0, "r1", 2)
    await inventory.acknowledge(sale.sale, 0, [entries[0].entry_id])
    last = (await inventory.cut(sale.sale, 0)).last_entry_id
    kill(server)
    await until_dead(server)
    await server.restart()
    await until_back(inventory)
    again = await inventory.read_journal(sale.sale, 0, "r1", 10)
    assert [order.buyer for entry in again for order in entry.reservations] == ["bob", "cid"]
    assert await inventory.journal_depth(sale.sale, 0) == 2
    assert (await inventory.cut(sale.sale, 0)).last_entry_id == last


# --- the connection ---------------------------------------------------------------------------------------


async def test_without_a_server_the_first_connection_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(InventoryUnavailable, match=rf"127.0.0.1:{port} cannot be reached .*; start it"):
        await ValkeyInventory.connect("127.0.0.1", port, CLOCK)


async def test_while_the_server_is_away_calls_are_refused_at_once(
    server: EmbeddedValkey, inventory: ValkeyInventory
) -> None:
    sale = a_sale()
    await inventory.publish(sale)
    await server.stop()
    await asyncio.sleep(0.05)
    began = time.monotonic()
    with pytest.raises(InventoryUnavailable, match="repeat the call when it is back"):
        await inventory.reserve(sale.sale, 0, [want("ann")])
    assert time.monotonic() - began < 0.5
    await server.restart()
    await until_back(inventory)
    assert (await inventory.reserve(sale.sale, 0, [want("ann")]))[0].status is RESERVED


async def test_a_call_without_an_answer_in_time_has_an_unknown_outcome_and_can_be_repeated(
    server: EmbeddedValkey, inventory: ValkeyInventory
) -> None:
    sale = a_sale()
    await inventory.publish(sale)
    server.child.signal(signal.SIGSTOP)
    try:
        calls = [inventory.reserve(sale.sale, 0, [want(buyer)]) for buyer in ("ann", "bob")]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    finally:
        server.child.signal(signal.SIGCONT)
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown, OutcomeUnknown]
    assert "took longer than 1 s" in str(outcomes[0])
    await until_back(inventory)
    results = await inventory.reserve(sale.sale, 0, [want("ann"), want("bob")])
    assert {result.status for result in results} <= {RESERVED, REPEATED}
    assert (await inventory.cut(sale.sale, 0)).stock["tea"] == 998


async def test_a_frozen_counter_cannot_sell_late_whatever_its_clock_says(server: EmbeddedValkey) -> None:
    class SlowClock(SystemClock):
        @override
        def now_ms(self) -> int:
            return super().now_ms() - 10 * HOUR_MS

    inventory = await ValkeyInventory.connect(server.host, server.port, SlowClock())
    sale = a_sale()
    await inventory.publish(sale)
    (result,) = await inventory.reserve(sale.sale, 0, [want("ann", deadline_in_ms=-1)])
    await inventory.close()
    assert result.status is ReserveStatus.LATE


async def test_calls_beyond_the_limit_in_flight_are_refused(inventory: ValkeyInventory) -> None:
    sale = a_sale(stock=10_000)
    await inventory.publish(sale)
    calls = [inventory.reserve(sale.sale, 0, [want(f"b{n}")]) for n in range(CALLS_IN_FLIGHT_MAX + 3)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, InventoryUnavailable)]
    assert len(refused) == 3
    assert inventory.calls_in_flight == 0
    assert (await inventory.cut(sale.sale, 0)).stock["tea"] == 10_000 - CALLS_IN_FLIGHT_MAX


async def test_a_caller_that_gave_up_does_not_disturb_the_others(inventory: ValkeyInventory) -> None:
    sale = a_sale()
    await inventory.publish(sale)
    first, second = (asyncio.create_task(inventory.reserve(sale.sale, 0, [want(b)])) for b in ("ann", "bob"))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second)[0].status is RESERVED
    assert (await inventory.reserve(sale.sale, 0, [want("ann")]))[0].status is REPEATED


async def test_a_server_out_of_memory_refuses_before_it_writes_and_can_still_be_emptied(
    inventory: ValkeyInventory,
) -> None:
    sale = a_sale(per_buyer_max=2)
    await inventory.publish(sale)
    (held,) = await inventory.reserve(sale.sale, 0, [want("ann")])
    await (await inventory._store.primaries())[0].call("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(InventoryUnavailable, match="OOM"):
        await inventory.reserve(sale.sale, 0, [want("bob")])
    with pytest.raises(InventoryUnavailable, match="OOM"):
        await inventory.publish(a_sale())
    entries = await inventory.read_journal(sale.sale, 0, "r1", 10)
    await inventory.acknowledge(sale.sale, 0, [entry.entry_id for entry in entries])
    assert await inventory.give_back(StockReturn(held.order_id, sale.sale, 0, "ann", "tea", 1))
    await (await inventory._store.primaries())[0].call("CONFIG", "SET", "maxmemory", "0")
    assert await inventory.journal_depth(sale.sale, 0) == 0
    assert (await inventory.cut(sale.sale, 0)).stock["tea"] == 1000
    assert (await inventory.reserve(sale.sale, 0, [want("bob")]))[0].status is RESERVED


async def test_functions_that_were_lost_or_replaced_are_loaded_again(
    server: EmbeddedValkey, inventory: ValkeyInventory
) -> None:
    sale = a_sale()
    await inventory.publish(sale)
    await (await inventory._store.primaries())[0].call("FUNCTION", "FLUSH")
    with pytest.raises(InventoryUnavailable, match="loaded again"):
        await inventory.reserve(sale.sale, 0, [want("ann")])
    await until_back(inventory)
    assert (await inventory.reserve(sale.sale, 0, [want("ann")]))[0].status is RESERVED
    other = "#!lua name=springtide\nserver.register_function('springtide_reserve', function() return 1 end)"
    await (await inventory._store.primaries())[0].call("FUNCTION", "LOAD", "REPLACE", other)
    newer = await ValkeyInventory.connect(server.host, server.port, CLOCK)
    assert (await newer.reserve(sale.sale, 0, [want("ann")]))[0].status is REPEATED
    await newer.close()


@pytest.mark.parametrize("bad", ["a,b", "a;b"])
async def test_a_separator_inside_a_field_is_refused(inventory: ValkeyInventory, bad: str) -> None:
    sale = a_sale()
    await inventory.publish(sale)
    for request in (want(bad), want("ann", bad)):
        with pytest.raises(ValueError, match="check them before they are sent"):
            await inventory.reserve(sale.sale, 0, [request])


async def test_a_reply_that_nobody_asked_for_ends_the_connection() -> None:
    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"hello\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(odd, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(OutcomeUnknown, match="check that it is Valkey"):
            await ValkeyInventory.connect("127.0.0.1", port, CLOCK)
