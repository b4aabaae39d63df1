"""The page of a simulation and of a comparison: what it says, and that it needs nothing else."""

import html
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from springtide.console.simulation_charts import Axis, cost_so_far, single_charts
from springtide.console.simulation_report import (
    percent,
    render_comparison,
    render_single,
    verdict,
    write_comparison,
    write_single,
)
from springtide.errors import UserError
from springtide.twin.simulation.compare import Compared, Comparison
from springtide.twin.simulation.elastic import Elastic
from springtide.twin.simulation.faults import Fault, FaultKind
from springtide.twin.simulation.outcome import Alert, Breach, Outcome, Sample
from springtide.twin.simulation.scenario import Scenario
from tests.twin.simulations import small

ELASTIC = Elastic(1.25, 23.4, 5.6, 78.9, 12.3)


def samples(cores: int = 64) -> tuple[Sample, ...]:
    return tuple(
        Sample(
            at_s=float(at_s),
            demand_per_s=200.0,
            served_per_s=199.0,
            shed_per_s=1.0,
            p99_ms=104.0,
            serving_idc=64,
            serving_ecs=cores,
            serving_eci=8,
            line_share=0.25,
            cost_cny_per_h=3_600.0,
        )
        for at_s in range(100, 1_501, 100)
    )


def outcome(policy: str = "springtide", **changes: Any) -> Outcome:
    given = {
        "scenario": "small",
        "policy": policy,
        "seed": 7,
        "until_s": 1_500.0,
        "ready_s": -139.0,
        "availability": 1.0,
        "requests": 3_012_988_913.0,
        "acknowledged": 1_234.0,
        "cores_peak": 104_256,
        "nodes_left": 0,
        "violation_s": 0.0,
        "cost_cny": 1_500.0,
        "clairvoyant_cost_cny": 1_000.0,
        "samples": samples(),
    }
    return Outcome(**{**given, **changes})


def comparison(*outcomes: Outcome, **changes: Any) -> Comparison:
    rows = tuple(Compared(each, ELASTIC) for each in outcomes)
    return Comparison(**{"scenario": "small", "seed": 7, "calendar": True, "rows": rows, **changes})


def drawn(page: str) -> list[dict[str, Any]]:
    """The charts in the page, as the browser reads them."""
    found = re.search(r'<script type="application/json" id="chart-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    charts = json.loads(found.group(1))
    assert isinstance(charts, list)
    assert len(charts) == len(re.findall(r'id="chart-\d+"', page))
    return charts


def words(page: str) -> str:
    """The text of the page without its scripts, styles and tags."""
    bare = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", bare)))


def test_one_run_is_told_with_its_figures() -> None:
    page = render_single(small(), outcome())
    said = words(page)
    for text in (
        "100% of 3,012,988,913 requests",
        "139 s before",
        "3.01 billion",
        "104,256",
        "1,500 CNY",
        "1.50 × the clairvoyant's 1,000",
        "No second violated the SLO",
        "Demand against what is served",
        "Load of the fullest line",
    ):
        assert text in said, text
    assert len(drawn(page)) == 6


def test_a_page_needs_nothing_else() -> None:
    for page in (render_single(small(), outcome()), render_comparison(small(), comparison(outcome()))):
        own = re.sub(r"<script>/\*\*.*?</script>", "", page, flags=re.DOTALL)  # the library names addresses it may call
        assert not re.search(r"(src|href)\s*=\s*[\"']?https?:", own)
        assert "Plotly" in page
        assert page.count("<html") == 1


def test_what_went_wrong_is_told_first() -> None:
    broken = outcome(
        breaches=(Breach(12.0, "no node leaked", "i-1"),), alerts=(Alert(30.0, "capacity short by 4 replicas", 3),)
    )
    said = words(render_single(small(), broken))
    assert "1 invariants were broken" in said
    assert "12 s: no node leaked: i-1" in said
    assert "30 s: capacity short by 4 replicas (3 times)" in said
    stopped = words(render_single(small(), outcome(interrupted=True, until_s=700.0, clairvoyant_cost_cny=None)))
    assert "Stopped after 700 of 1,500 s" in stopped


def test_text_of_a_scenario_cannot_become_part_of_the_page() -> None:
    evil = msgspec.structs.replace(small(), about="</script><script>alert(1)</script>")
    page = render_comparison(evil, comparison(outcome("</script><b>")))
    assert "<script>alert(1)" not in page
    assert "<b>" not in re.sub(r"<script>/\*\*.*?</script>", "", page, flags=re.DOTALL)
    assert drawn(page)[0]["data"][0]["name"] == "</script><b>"


def test_a_comparison_has_each_policy_with_all_that_is_measured() -> None:
    late = outcome("hpa", ready_s=112.0, availability=0.93422, violation_s=98.0, cost_cny=900.0, samples=samples(640))
    page = render_comparison(
        small(), comparison(outcome(), late, outcome("idc-first"), outcome("idc-only", ready_s=None))
    )
    said = words(page)
    for text in ("112 s after", "93.4%", "98 s", "0.90 ×", "never", "1.2%", "23.4%", "5.6%", "78.9%", "12.3%"):
        assert text in said, text
    assert "anything is rented; here it does what springtide does" in said
    assert "down after our patience; here it does" not in said
    charts = drawn(page)
    assert len(charts) == 6 + 4
    names = {trace["name"] for trace in charts[0]["data"]}
    assert names == {"springtide", "hpa", "idc-first", "idc-only", "people who come"}
    tops = {tuple(chart["layout"]["yaxis"]["range"]) for chart in charts[6:]}
    assert len(tops) == 1  # one scale for all of them
    assert tops.pop()[1] == pytest.approx(1.05 * (64 + 640 + 8))


def test_the_verdict_is_whoever_s_it_is() -> None:
    ours, other = outcome(cost_cny=100.0), outcome("keda", cost_cny=90.0)
    bad = outcome("hpa", violation_s=9.0, cost_cny=1.0)
    assert verdict(comparison(ours, other, bad)) == (
        "2 of 3 policies kept the SLO all the time; at the least cost keda",
        "keda 90 CNY, springtide 100 CNY.",
    )
    equal = comparison(ours, outcome("idc-first", cost_cny=100.0))
    assert verdict(equal)[0].endswith("at the least cost springtide and idc-first")
    worse = outcome("idc-only", violation_s=90.0)
    assert verdict(comparison(worse, bad))[0] == ("No policy kept the SLO all the time; hpa violated it least, for 9 s")
    stopped = comparison(ours, left_out=("hpa", "keda"))
    assert "Stopped early; left out: hpa, keda." in verdict(stopped)[1]
    assert verdict(comparison(left_out=("springtide",)))[0] == "Nothing was run to the end"
    assert "Nothing was run to the end" in words(render_comparison(small(), comparison(left_out=("springtide",))))


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100%"), (0.9999999, "99.999%"), (0.99994, "99.994%"), (0.949, "94.9%"), (0.0, "0.0%")],
)
def test_nearly_all_is_not_all(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("duration_s", "unit", "until"),
    [(300, " s", 300), (7_200, " min", 120), (86_400, " h", 24), (14 * 86_400, " h", 336), (30 * 86_400, " d", 30)],
)
def test_time_is_in_a_fitting_unit(duration_s: int, unit: str, until: float) -> None:
    axis = Axis.of(small(duration_s=duration_s))
    assert (axis.unit, axis.until) == (unit, until)


def test_faults_that_come_together_have_one_mark() -> None:
    kinds = [Fault(FaultKind.STOCK_OUT, at_s, 10, "cloud-a") for at_s in (900, 100, 101, 102, 500)]
    scenario: Scenario = small(*kinds)
    assert [name for _, name in Axis.of(scenario).faults] == ["1–3", "4", "5"]
    page = render_single(scenario, outcome())
    assert re.findall(r"<li>(\d+) s: stock out cloud-a", page) == ["100", "101", "102", "500", "900"]


def test_cost_adds_up() -> None:
    assert cost_so_far(samples())[:3] == [100.0, 200.0, 300.0]


def test_a_world_without_lines_has_no_chart_of_them() -> None:
    scenario = small()
    own = tuple(zone for zone in scenario.zones if not zone.lines)
    titles = [chart["title"] for chart in single_charts(small(lines=(), zones=own), outcome())]
    assert "Load of the fullest line" not in titles
    assert len(titles) == 5


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_single(tmp_path / "file" / "page.html", small(), outcome())
    with pytest.raises(UserError, match="cannot be written"):
        write_comparison(tmp_path / "file" / "page.html", small(), comparison(outcome()))
    write_single(tmp_path / "new" / "page.html", small(), outcome())
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")
