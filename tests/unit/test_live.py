"""The live view: what it shows, how often, and what a log gets instead."""

import io
from dataclasses import dataclass

import msgspec
import pytest
from rich.console import Console

from springtide.console.live import (
    LiveState,
    LiveView,
    Phase,
    StockLive,
    ZoneLive,
    bar,
    phase_at,
    picture,
    plain_line,
    sparkline,
)
from springtide.drivers.system import SystemClock
from springtide.model import ZoneKind

STATE = LiveState(
    phase=Phase.OPEN,
    elapsed_s=47.2,
    opens_s=45.0,
    demand=tuple([20.0] * 45 + [2000.0] * 8 + [100.0] * 22),
    sent_rps=2134.0,
    p99_ms=23.4,
    shed=3,
    cost_cny=0.0312,
    zones=(
        ZoneLive("idc-a", ZoneKind.IDC, 250, 0, 1, 0, 1),
        ZoneLive("cloud-h", ZoneKind.CLOUD, 3000, 2, 12, 0, 6),
    ),
    stock=(StockLive("lipstick", 1200, 4000), StockLive("phone", 0, 500)),
    orders={"reserved": 3100, "paid": 200},
    decisions=("rent 6 nodes in cloud-h: the sale opens in 18 s", "start 2 replicas in cloud-h"),
)


@dataclass
class SteppedClock(SystemClock):
    at_s: float = 100.0

    def monotonic_s(self) -> float:
        return self.at_s


def text_of(state: LiveState) -> str:
    console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(picture(state))
    return captured.get()


def view_of(*, terminal: bool) -> tuple[LiveView, SteppedClock, io.StringIO]:
    file, clock = io.StringIO(), SteppedClock()
    return (
        LiveView(Console(file=file, width=110, force_terminal=terminal, color_system=None), clock),
        clock,
        file,
    )


@pytest.mark.parametrize(
    ("elapsed_s", "phase"),
    [
        (-0.1, Phase.STARTING),
        (0.0, Phase.EVENING),
        (36.9, Phase.EVENING),
        (37.0, Phase.COUNTDOWN),
        (45.0, Phase.OPEN),
        (56.9, Phase.OPEN),
        (57.0, Phase.TAIL),
        (75.0, Phase.SETTLING),
    ],
)
def test_the_phase_follows_the_clock(elapsed_s: float, phase: Phase) -> None:
    assert phase_at(elapsed_s, opens_s=45.0, lasts_s=12.0, demand_s=75.0) is phase


def test_the_picture_shows_every_figure() -> None:
    text = text_of(STATE)
    for shown in (
        "OPEN",
        "2,134",
        "idc-a",
        "3,000",
        "lipstick",
        "1,200",
        "sold out",
        "reserved 3,100",
        "23.4 ms",
    ):
        assert shown in text
    assert "0.031 CNY" in text
    assert "rent 6 nodes in cloud-h: the sale opens in 18 s" in text


def test_the_picture_of_a_run_that_has_only_begun() -> None:
    text = text_of(LiveState(phase=Phase.STARTING, elapsed_s=-5.0, opens_s=45.0))
    assert "engines starting" in text
    assert "none yet" in text


def test_before_the_opening_the_time_left_is_shown() -> None:
    assert "opens in 5 s" in text_of(msgspec.structs.replace(STATE, phase=Phase.COUNTDOWN, elapsed_s=40.0))


def test_only_the_last_decisions_are_shown() -> None:
    text = text_of(msgspec.structs.replace(STATE, decisions=tuple(f"decision {n}" for n in range(30))))
    assert "decision 29" in text
    assert "decision 24" not in text


def test_a_long_decision_stays_on_its_line() -> None:
    assert (
        len({len(line) for line in text_of(msgspec.structs.replace(STATE, decisions=("x" * 300,))).splitlines()}) == 1
    )


def test_the_sparkline_keeps_the_peak_and_tells_what_is_past() -> None:
    line, done = sparkline([0.0] * 99 + [10.0], 50.0, 10)
    assert line == "▁" * 9 + "█"
    assert done == 6
    assert sparkline([1.0, 2.0], -1.0, 64)[1] == 0
    assert len(sparkline([0.0, 0.0], 5.0, 64)[0]) == 2


def test_a_bar_shows_a_little_and_never_too_much() -> None:
    assert bar(0.0001, "red").plain.count("█") == 1
    assert bar(0.0, "red").plain.count("█") == 0
    assert bar(7.0, "red").plain.count("█") == len(bar(7.0, "red").plain) == 28


def test_a_log_gets_one_plain_line_every_five_seconds_and_at_each_phase() -> None:
    view, clock, file = view_of(terminal=False)
    with view:
        for step in range(24):
            clock.at_s = 100.0 + step * 0.5
            view.update(STATE)
        view.update(msgspec.structs.replace(STATE, phase=Phase.TAIL))
    lines = file.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == plain_line(STATE)
    assert "\x1b" not in file.getvalue()
    assert lines[3].startswith("  47.2 s  tail | 2134 requests/s of 3250 | replicas idc-a=1 cloud-h=12")


def test_a_terminal_is_drawn_at_most_four_times_a_second() -> None:
    view, clock, file = view_of(terminal=True)
    with view:
        view.update(STATE)
        drawn = file.getvalue().count("idc-a")
        clock.at_s += 0.1
        view.update(STATE)
        assert file.getvalue().count("idc-a") == drawn
        clock.at_s += 0.2
        view.update(STATE)
        assert file.getvalue().count("idc-a") == drawn + 1
