"""What orders show of a stock that nobody sees."""

import pytest

from springtide.decide.stock import FILLS_MS, PAUSE_MS, REFUSED_MS, Shortfall, beliefs, believed, refusals
from springtide.model import Fill, Market, Offer, StockLevel

NOW = 10_000_000
OFFERS = (
    Offer("z-a", "c.large", Market.ON_DEMAND, 8, 16_384, 80.0),
    Offer("z-a", "c.large", Market.SPOT, 8, 16_384, 20.0),
    Offer("z-b", "c.large", Market.ON_DEMAND, 8, 16_384, 90.0, stock=7),
)
A, SPOT, B = (offer.key for offer in OFFERS)


def fill(key: str, ago_ms: int, error: str = "", filled: int = 0) -> Fill:
    return Fill(key, NOW - ago_ms, 10, filled, error)


def stocks(*fills: Fill) -> list[int | None]:
    return [offer.stock for offer in believed(OFFERS, fills, NOW)]


def test_without_orders_nothing_is_known_but_what_is_said() -> None:
    assert stocks() == [None, None, 7]


def test_a_partial_fill_has_emptied_the_offer() -> None:
    assert stocks(fill(A, 1_000, f"{Shortfall.STOCK}: no more", filled=4)) == [0, None, 7]
    assert stocks(fill(A, PAUSE_MS, f"{Shortfall.STOCK}: no more", filled=4)) == [None, None, 7]


@pytest.mark.parametrize(("times", "pauses"), [(1, 1), (2, 2), (3, 4), (4, 8)])
def test_the_pause_doubles_with_each_order_in_a_row_that_came_short(times: int, pauses: int) -> None:
    fills = [fill(A, 1_000 + number, f"{Shortfall.STOCK}: none") for number in range(times, 0, -1)]
    assert beliefs(fills, NOW)[A].until_ms == fills[-1].at_ms + pauses * PAUSE_MS


def test_no_pause_is_longer_than_the_memory() -> None:
    fills = [fill(A, 10 * (9 - number), f"{Shortfall.STOCK}: none") for number in range(9)]
    assert beliefs(fills, NOW)[A].until_ms == fills[-1].at_ms + FILLS_MS


def test_an_order_that_was_filled_ends_all_doubt() -> None:
    short, whole = fill(A, 2_000, f"{Shortfall.STOCK}: none"), fill(A, 1_000, filled=10)
    assert stocks(short, whole) == [None, None, 7]
    assert beliefs((short, whole, fill(A, 500, f"{Shortfall.STOCK}: none")), NOW)[A].until_ms == NOW - 500 + PAUSE_MS


def test_a_quota_closes_its_market_everywhere() -> None:
    assert stocks(fill(A, 1_000, f"{Shortfall.QUOTA}: reached")) == [0, None, 0]
    assert stocks(fill(A, 1_000, f"{Shortfall.QUOTA}: reached"), fill(B, 500, filled=10)) == [0, None, 7]


def test_a_refusal_waits_for_a_person_and_three_close_everything() -> None:
    one = fill(A, REFUSED_MS - 1, f"{Shortfall.REFUSED}: balance")
    assert stocks(one) == [0, None, 7]
    refused = [fill(key, 1_000, f"{Shortfall.REFUSED}: balance") for key in (A, SPOT, B)]
    assert stocks(*refused) == [0, 0, 0]
    assert beliefs(refused[:2], NOW).keys() == {A, SPOT}
    assert "*" in beliefs(refused, NOW)


def test_a_refusal_is_said_once_for_as_long_as_it_is_fresh() -> None:
    refused = [fill(key, 1_000, f"{Shortfall.REFUSED}: no balance") for key in (A, SPOT)]
    assert refusals(refused, NOW) == [
        f"an order of {SPOT} was refused: no balance; look at the account, or at the order"
    ]
    assert refusals(refused, NOW + REFUSED_MS) == []
    assert refusals([fill(A, 1_000, f"{Shortfall.STOCK}: none"), fill(A, 1_000, filled=10)], NOW) == []


def test_what_the_cloud_says_is_empty_is_not_asked() -> None:
    empty = Offer("z-a", "c.small", Market.ON_DEMAND, 2, 4_096, 20.0, StockLevel.NONE, stock=3)
    assert believed((empty,), (), NOW)[0].stock == 0


def test_old_orders_are_forgotten() -> None:
    assert stocks(fill(A, FILLS_MS + 1, f"{Shortfall.STOCK}: none")) == [None, None, 7]
