"""What is collected of demand, and what a decision gets of it."""

import json

import pytest

from springtide.decide.forecast import GROWTH_MAX, SEASONS_MIN, Past, forecast, seasonal_growth
from springtide.decide.seasons import (
    BIN_MS,
    BINS_MAX,
    RECENT_BINS,
    RECENT_MIN,
    RISE_MAX,
    SEASONS,
    SeasonBook,
    from_bytes,
    to_bytes,
)
from springtide.model import CalendarEvent, SeasonPoint, TrafficSample, UsualDemand

DAY_MS = 86_400_000
NOW = 1_699_920_000_000 + 43_200_000
AHEAD_MS = 100_000


def point(at_ms: int, mean: float = 100.0, peak: float = 120.0, rise: float = 10.0) -> SeasonPoint:
    return SeasonPoint(at_ms, mean, peak, rise)


def fill(book: SeasonBook, bins: int, *rates: float) -> None:
    """The same samples in each of so many bins, and the first of the next."""
    for number in range(bins):
        for place, rate in enumerate(rates):
            book.add(NOW + number * BIN_MS + place * BIN_MS // len(rates), rate)
    book.add(NOW + bins * BIN_MS, rates[0])


def test_samples_become_bins_with_mean_peak_and_rise() -> None:
    book = SeasonBook(AHEAD_MS)
    fill(book, 2, 10.0, 30.0, 20.0)
    assert book.points == (
        SeasonPoint(NOW, 20.0, 30.0, 20.0),
        SeasonPoint(NOW + BIN_MS, 20.0, 30.0, 20.0),
    )


def test_a_rise_counts_within_the_time_that_capacity_takes() -> None:
    quick, slow = SeasonBook(AHEAD_MS), SeasonBook(AHEAD_MS)
    for second in range(0, 300, 10):
        quick.add(NOW + second * 1_000, 100.0 + 50.0 * (second >= 200))
        slow.add(NOW + second * 1_000, 100.0 + second)
    for book in (quick, slow):
        book.add(NOW + BIN_MS, 100.0)
    assert quick.points[0].rise_per_s == 50
    assert slow.points[0].rise_per_s == 100


def test_old_samples_and_announced_bins_are_left_out() -> None:
    book = SeasonBook(AHEAD_MS)
    book.add(NOW, 10.0)
    book.add(NOW - BIN_MS, 99.0)
    book.add(NOW + BIN_MS, 5_000.0, announced=True)
    book.add(NOW + 2 * BIN_MS, 20.0)
    book.add(NOW + 3 * BIN_MS, 20.0)
    assert [(one.at_ms - NOW, one.peak_per_s) for one in book.points] == [(0, 10.0), (2 * BIN_MS, 20.0)]


def test_bins_are_bounded_and_can_be_told_and_told_back() -> None:
    book = SeasonBook(AHEAD_MS)
    fill(book, BINS_MAX + 5, 1_234.5678)
    assert len(book.points) == BINS_MAX
    assert book.points[0].at_ms == NOW + 5 * BIN_MS
    kept = to_bytes(book)
    assert len(kept) < 200_000
    again = SeasonBook(AHEAD_MS, from_bytes(kept))
    assert [one.at_ms for one in again.points] == [one.at_ms for one in book.points]
    assert again.points[0].mean_per_s == 1_234.568
    assert from_bytes(None) == ()
    with pytest.raises(ValueError, match="malformed"):
        from_bytes(b"[x")
    with pytest.raises(ValueError, match="Expected"):
        from_bytes(json.dumps([1]).encode())


def test_what_is_here_wins_over_what_is_merged() -> None:
    book = SeasonBook(AHEAD_MS, [point(NOW, mean=1.0)])
    book.merge([point(NOW, mean=2.0), point(NOW - BIN_MS, mean=3.0)])
    assert [one.mean_per_s for one in book.points] == [3.0, 1.0]


def test_a_decision_gets_the_same_time_of_earlier_seasons() -> None:
    every = [point(NOW + number * BIN_MS) for number in range(-BINS_MAX + 1, 1)]
    near = SeasonBook(AHEAD_MS, every).near(NOW + 250_000, DAY_MS)
    begins = [(one.at_ms - NOW) / DAY_MS for one in near]
    assert len(near) == 2 * SEASONS
    assert begins[::2] == [-7, -6, -5, -4, -3, -2, -1]
    assert near[1].at_ms == near[0].at_ms + BIN_MS, "capacity takes into the next bin"
    assert SeasonBook(AHEAD_MS, every).near(NOW, 0) == ()


def test_what_is_usual_leaves_out_the_extremes() -> None:
    bins = [point(NOW + n * BIN_MS, mean=500, peak=100.0 + n, rise=float(n)) for n in range(100)]
    usual = SeasonBook(AHEAD_MS, bins).usual
    assert usual is not None
    recent = range(100 - RECENT_BINS, 100)
    assert usual.bins == RECENT_BINS
    assert sum(n > usual.rise_per_s for n in recent) == 7
    assert sum(100 + n > usual.peak_per_s for n in recent) == 3


def test_a_few_bins_are_not_usual_and_the_book_learns_as_bins_close() -> None:
    book = SeasonBook(AHEAD_MS)
    fill(book, RECENT_MIN - 1, 10.0, 30.0)
    assert book.usual is None
    book.add(NOW + RECENT_MIN * BIN_MS, 10.0)
    assert book.usual is not None


def test_events_are_no_habit() -> None:
    bins = [point(NOW + n * BIN_MS, mean=100, peak=9_000, rise=8_000) for n in range(20)]
    usual = SeasonBook(AHEAD_MS, bins).usual
    assert usual is not None
    assert usual.rise_per_s == RISE_MAX * 100


def traffic(rate: float) -> list[TrafficSample]:
    return [TrafficSample(NOW - 5_000 * back, rate) for back in range(15, -1, -1)]


def test_a_reserve_stands_for_the_usual_rise_up_to_the_usual_peak() -> None:
    past = Past(tick_ms=5_000, usual=UsualDemand(rise_per_s=300, peak_per_s=900, bins=72))
    demand = forecast(traffic(200), (), NOW, AHEAD_MS, past)
    assert (demand.likely, demand.high) == (200, 500)
    assert "usually rises to 500/s" in demand.reason
    assert forecast(traffic(800), (), NOW, AHEAD_MS, past).high == 900
    above = forecast(traffic(1_000), (), NOW, AHEAD_MS, past)
    assert (above.high, above.reason) == (1_000, "seen: 1000/s")


def days(*ratios: float) -> tuple[SeasonPoint, ...]:
    """Earlier days in which demand changed so from this bin to the next."""
    found = []
    for number, ratio in enumerate(ratios, 1):
        then = NOW - number * DAY_MS
        found += [point(then, mean=50.0), point(then + BIN_MS, mean=50.0 * ratio)]
    return tuple(sorted(found, key=lambda one: one.at_ms))


@pytest.mark.parametrize(
    ("ratios", "growth"),
    [
        ([2.0] * 7, 2.0),
        ([2.0] * 6 + [1.0], 2.0),
        ([2.0] * 5 + [1.2, 1.1], 1.2),
        ([0.5] * 7, 1.0),
        ([9.0] * 7, GROWTH_MAX),
        ([2.0] * (SEASONS_MIN - 1), 1.0),
    ],
    ids=["all", "all but one", "not so sure", "falling", "bounded", "too few"],
)
def test_earlier_seasons_count_as_far_as_nearly_all_agree(ratios: list[float], growth: float) -> None:
    past = Past(seasons=days(*ratios), season_ms=DAY_MS)
    assert seasonal_growth(past, NOW + 250_000, AHEAD_MS) == growth


def test_a_season_raises_the_high_end_before_its_time() -> None:
    past = Past(tick_ms=5_000, seasons=days(*[2.0] * 7), season_ms=DAY_MS)
    shifted = [TrafficSample(sample.at_ms + 250_000, 400) for sample in traffic(400)]
    demand = forecast(shifted, (), NOW + 250_000, AHEAD_MS, past)
    assert demand.high == 800
    assert "earlier seasons" in demand.reason
    assert forecast(shifted, (), NOW + 100_000, AHEAD_MS, past).high == 400


def test_doubt_provides_for_more_than_announced_until_the_size_is_seen() -> None:
    event = CalendarEvent("live", NOW + 60_000, 600_000, 5_000, ready_ms=5_000)
    past = Past(doubt=0.8, doubt_ms=120_000)
    assert forecast(traffic(100), (event,), NOW, AHEAD_MS, past).high == 9_000
    opened = NOW + 60_000 + 120_000
    seen = [TrafficSample(opened - 500 * back, 4_000) for back in range(15, -1, -1)]
    assert forecast(seen, (event,), opened - 1, AHEAD_MS, past).high == 9_000
    assert forecast(seen, (event,), opened, AHEAD_MS, past).high == 5_000
