"""When a purchase is decided for ever, and that asking has limits."""

import asyncio

import pytest

from springtide.config import CounterSettings
from springtide.drivers.memory.clock import VirtualClock
from springtide.errors import InventoryUnavailable
from springtide.model import HeldOrder
from springtide.sale import order_status
from springtide.sale.batcher import ANSWER_GRACE_MS
from springtide.sale.order_status import OrderStatus, moment

SETTINGS = CounterSettings(purchase_timeout_ms=2000, queue_wait_ms_max=250)
WHO = ("evening", "anna", "k1")


class Orders:
    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.lasts_s = 0.0
        self.failure: Exception | None = None

    async def orders_of(self, sale: str, bucket: int, buyer: str) -> list[HeldOrder]:
        assert (sale, bucket, buyer) == ("evening", 0, "anna")
        await self.clock.sleep(self.lasts_s)
        if self.failure is not None:
            raise self.failure
        return []


def test_a_moment_that_is_told_decides_it_and_else_the_first_question() -> None:
    clock = VirtualClock()
    status = OrderStatus(Orders(clock), clock, SETTINGS)
    assert status.decided_ms(WHO, 400, 1000) == 400 + 2000 + ANSWER_GRACE_MS
    assert status.decided_ms(WHO, None, 5000) == 1000 + 250 + 2000 + ANSWER_GRACE_MS
    other = ("evening", "anna", "k2")
    assert status.decided_ms(other, 99_999, 6000) == 6000 + 250 + 2000 + ANSWER_GRACE_MS, "nobody sends in the future"
    assert status.remembered == 2


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_status, "ASKED_MAX", 10)
    clock = VirtualClock()
    status = OrderStatus(Orders(clock), clock, SETTINGS)
    for number in range(55):
        status.decided_ms(("evening", "anna", f"k{number}"), None, number)
        assert status.remembered <= 20
    assert status.decided_ms(("evening", "anna", "k54"), None, 900) < status.decided_ms(
        ("evening", "anna", "k0"), None, 900
    )


async def test_questions_are_bounded_and_each_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_status, "LOOKUPS_MAX", 2)
    clock = VirtualClock()
    orders = Orders(clock)
    status = OrderStatus(orders, clock, SETTINGS)
    told: list[list[HeldOrder] | None] = []
    orders.lasts_s = 9.0
    assert [status.ask("evening", 0, "anna", told.append) for _ in range(3)] == [True, True, False]
    await clock.advance(2.0)
    assert told == [None, None]
    orders.lasts_s = 0.0
    for failure in (None, InventoryUnavailable("away"), RuntimeError("a fault")):
        orders.failure = failure
        assert status.ask("evening", 0, "anna", told.append)
        await clock.advance(0.0)
    assert told[2:] == [[], None, None]
    assert status.in_flight == 0
    await asyncio.wait_for(status.close(), 1)


@pytest.mark.parametrize("text", [b"", b"-1", b"1.5", b"1e9", b"x", b"9" * 16, b" 1", "\u0661".encode()], ids=range(8))
def test_a_moment_is_digits(text: bytes) -> None:
    assert moment(text) is None
    assert moment(b"1700000000000") == 1_700_000_000_000
