"""The verdict's rules, and the report that says them."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from springtide.console.charts import answer_colour, answer_name, charts, zone_colours
from springtide.console.figures import FleetSecond, Mark, RunFigures, exit_status, percent, verdict
from springtide.console.report import render, write_report
from springtide.errors import UserError
from springtide.model import Zone, ZoneKind
from springtide.twin.crowd.spec import CrowdSecond, CrowdSummary

ZONES = (
    Zone("idc-a", ZoneKind.IDC, 1, 3),
    Zone("idc-b", ZoneKind.IDC, 1, 3),
    Zone("cloud-h", ZoneKind.CLOUD, 6, 4, 5000, 82),
)
CROWD = CrowdSummary(
    requests=29_500,
    first_attempts=23_140,
    acknowledged=6800,
    answers={"201 reserved": 6800, "409 sold_out": 15_000},
    availability=1.0,
    failed=0,
    shed_share=0.0002,
    shed_share_at_peak=0.0003,
    unanswered=0,
    resolved=0,
    conflicting=0,
    p50_ms=3.1,
    p99_ms=48.0,
    p999_ms=90.5,
    max_ms=131.0,
    base_rps=20.1,
    peak_rps=2610.0,
    behind=False,
    late_share=0.001,
    generator_late_share=0.0,
    generator_late_ms_max=31.0,
    payments=5400,
    payments_acknowledged=5400,
    payments_refused=0,
    payments_unanswered=0,
    gave_up=0,
    cpu_s=6.1,
)


def rate_at(second: int) -> float:
    if second < 38:
        return 20.0
    if second < 45:
        return 20 + 230 * ((second - 37) / 7) ** 2
    return 2000.0 if second < 53 else 20 + 1900 * 0.75 ** (second - 52)


def crowd_second(second: int) -> CrowdSecond:
    rate = rate_at(second)
    sent = round(rate * (1.3 if 48 <= second < 60 else 1.02))
    sold = round(sent * 0.8) if 45 <= second < 49 else 0
    refused = round(sent * 0.8) if second >= 49 else 0
    early = round(sent * 0.05) if 38 <= second < 45 else 0
    answers = {
        "200 page": sent - sold - refused - early,
        "201 reserved": sold,
        "409 sold_out": refused,
        "425 not_open": early,
    }
    answers = {label: count for label, count in answers.items() if count}
    if second == 46:
        answers["503 overloaded"] = 40
    slow = 4.0 if 45 <= second < 55 else 1.0
    return CrowdSecond(second, rate, round(rate), sent, answers, 0, 0, 0, 1.4 * slow, 9.0 * slow, 30.0 * slow)


def fleet_second(second: int) -> FleetSecond:
    nodes = min(6, max(0, (second - 26))) if second < 62 else max(0, 6 - (second - 62) // 2)
    cloud = min(12, max(0, (second - 32) * 2)) if second < 60 else max(0, 12 - (second - 60) * 2)
    sold = min(7000, max(0, (second - 44) * 1700))
    paid = min(round(sold * 0.8), max(0, (second - 47) * 900))
    expired = min(sold - round(sold * 0.8), max(0, (second - 56) * 150))
    stock = {
        "lipstick": max(0, 4000 - sold * 4 // 7),
        "noodles": max(0, 2500 - sold * 5 // 14),
        "phone": max(0, 500 - sold // 7),
    }
    return FleetSecond(
        second,
        {"idc-a": 250.0, "idc-b": 250.0, "cloud-h": cloud * 250.0},
        {"idc-a": 1, "idc-b": 1, "cloud-h": cloud},
        {"idc-a": 1, "idc-b": 1, "cloud-h": nodes},
        stock,
        {"reserved": sold - paid - expired, "paid": paid, "expired": expired},
        max(0, second - 28) * 6 * 0.82 / 3600,
    )


FIGURES = RunFigures(
    title="Tonight in the live room",
    zones=ZONES,
    crowd=CROWD,
    recorded=6800,
    proved=True,
    oversold=0,
    lost=0,
    duplicates=0,
    stock_differences={"lipstick": 0, "noodles": 0, "phone": 0},
    replicas_peak={"idc-a": 1, "idc-b": 1, "cloud-h": 12},
    cloud_share_at_peak=0.857,
    nodes_rented=6,
    nodes_left=0,
    ready_before_open_s=6.4,
    cost_cny=0.058,
    cost_static_peak_cny=118.08,
    rate_max=250.0,
    unthrottled_rps=21_400.0,
    opens_s=45.0,
    first_node_rented_s=27.2,
    last_node_released_s=74.1,
    seconds=tuple(crowd_second(second) for second in range(82)),
    fleet=tuple(fleet_second(second) for second in range(82)),
)


def with_crowd(**changes: Any) -> RunFigures:
    return msgspec.structs.replace(FIGURES, crowd=msgspec.structs.replace(CROWD, **changes))


def with_run(**changes: Any) -> RunFigures:
    return msgspec.structs.replace(FIGURES, **changes)


def test_a_good_run_holds() -> None:
    assert exit_status(FIGURES) == 0
    assert all(check.ok for check in verdict(FIGURES))


@pytest.mark.parametrize(
    "figures",
    [
        with_run(oversold=1),
        with_run(lost=1),
        with_run(duplicates=1),
        with_run(stock_differences={"lipstick": 0, "phone": -1}),
        with_run(nodes_left=1),
        with_crowd(failed=1, availability=1 - 1 / 29_500),
        with_crowd(shed_share=0.00101),
        with_crowd(unanswered=1),
        with_crowd(conflicting=1),
        with_crowd(acknowledged=0),
        with_crowd(requests=0),
    ],
)
def test_one_broken_promise_is_enough(figures: RunFigures) -> None:
    assert exit_status(figures) == 1
    assert sum(not check.ok for check in verdict(figures)) == 1


def test_the_bound_of_later_answers_is_allowed() -> None:
    assert exit_status(with_crowd(shed_share=0.001)) == 0


@pytest.mark.parametrize("change", [{"failed": 900, "availability": 0.97}, {"shed_share": 0.4}])
def test_with_faults_availability_is_reported_and_not_judged(change: dict[str, Any]) -> None:
    figures = msgspec.structs.replace(with_crowd(**change), chaos=True)
    assert exit_status(figures) == 0
    failing = [check for check in verdict(figures) if not check.ok]
    assert [check.judged for check in failing] == [False]


@pytest.mark.parametrize("change", [{"unanswered": 1}, {"conflicting": 1}])
def test_with_faults_every_doubt_must_end_in_one_answer(change: dict[str, Any]) -> None:
    assert exit_status(msgspec.structs.replace(with_crowd(**change), chaos=True)) == 1


def test_a_late_generator_is_a_slow_machine_unless_orders_are_wrong() -> None:
    slow = with_crowd(behind=True, generator_late_share=0.02, shed_share=0.2)
    assert exit_status(slow) == 3
    assert exit_status(msgspec.structs.replace(slow, lost=1)) == 1


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100%"),
        (0.0, "0%"),
        (0.99999, "99.999%"),
        (0.000004, "0.0004%"),
        (0.5123, "51.23%"),
        (0.001, "0.1%"),
    ],
)
def test_percentages_do_not_round_a_flaw_away(share: float, text: str) -> None:
    assert percent(share) == text


def test_the_files_have_what_was_promised(tmp_path: Path) -> None:
    write_report(tmp_path / "out", FIGURES)
    document = json.loads((tmp_path / "out" / "report.json").read_bytes())
    promised = (
        "requests, acknowledged, recorded, oversold, lost, duplicates, availability, base_rps, peak_rps,"
        "peak_over_base,"
        "p50_ms, p99_ms, p999_ms, shed_share, replicas_peak, cloud_share_at_peak, nodes_rented, nodes_left,"
        "ready_before_open_s, cost, cost_static_peak"
    )
    assert {key.strip() for key in promised.split(",")} <= set(document)
    assert document["peak_over_base"] == pytest.approx(2610 / 20.1)
    assert document["exit_status"] == 0
    assert len(document["seconds"]) == len(document["fleet"]) == 82
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The verdict holds" in page
    assert "emulated" in page
    assert "21,400" in page


def test_the_page_needs_nothing_from_elsewhere() -> None:
    own = re.sub(r"<script>/\*\*.*?</script>", "", render(FIGURES), count=1, flags=re.DOTALL)
    assert len(own) < 300_000
    assert not re.search(r"""(src|href)\s*=|url\(|@import""", own)


def test_names_cannot_break_out_of_the_page() -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    page = render(with_run(title=hostile, faults=(Mark(46.0, hostile),), chaos=True))
    assert hostile not in page
    assert "&lt;/script&gt;&lt;img" in page


def test_an_unscaled_run_says_how_it_failed() -> None:
    page = render(msgspec.structs.replace(with_crowd(shed_share=0.4, shed_share_at_peak=0.71), scaled=False))
    assert "Without scaling, 71% of the first attempts at the peak" in page
    assert "base replicas alone" in page


def test_a_run_without_series_has_a_report_without_charts() -> None:
    bare = with_run(seconds=(), fleet=(), ready_before_open_s=None, unthrottled_rps=None, first_node_rented_s=None)
    assert charts(bare) == []
    assert "The verdict holds" in render(bare)


def test_capacity_is_stacked_by_zone_and_moments_are_marked() -> None:
    chart = charts(FIGURES)[0]
    stacked = [trace for trace in chart["data"] if trace.get("stackgroup")]
    assert [trace["name"] for trace in stacked] == ["idc-a", "idc-b", "cloud-h"]
    assert stacked[2]["y"][50] == 3000.0
    assert {trace["name"] for trace in chart["data"]} >= {"requests sent", "demand planned"}
    assert sorted(shape["x0"] for shape in chart["layout"]["shapes"]) == [27.2, 45.0, 74.1]
    assert json.dumps(charts(FIGURES))


def test_faults_are_marked_on_every_chart() -> None:
    for chart in charts(with_run(faults=(Mark(46.5, "counter killed"),), chaos=True)):
        assert 46.5 in [shape["x0"] for shape in chart["layout"]["shapes"]]


def test_each_zone_has_its_colour() -> None:
    colours = zone_colours(ZONES)
    assert len(set(colours.values())) == 3
    assert list(colours) == ["idc-a", "idc-b", "cloud-h"]


def test_failures_are_red_and_read_well() -> None:
    assert answer_name("0 timeout") == "no answer: timeout"
    assert answer_name("409 sold_out") == "409 sold out"
    assert answer_name("500") == "500"
    assert answer_colour("503 overloaded") == answer_colour("0 connection") != answer_colour("201 reserved")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="choose another folder"):
        write_report(tmp_path / "out", FIGURES)


def test_an_equation_that_was_not_proved_does_not_hold() -> None:
    unproved = msgspec.structs.replace(FIGURES, proved=False)
    assert exit_status(unproved) == 1
    assert any("not proved" in check.value and not check.ok for check in verdict(unproved))
