"""The twin's prediction of the demo: what it follows from, and that it tells small worlds right."""

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from springtide.config import Config, load_sale
from springtide.errors import ConfigError
from springtide.twin.crowd.demand import Demand, load_demand
from springtide.twin.simulation.demo_model import (
    DemoFigures,
    StackFigures,
    measured_in,
    path_settings,
    predict,
    read_report,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
STACK = StackFigures(p50_ms=1.2, p99_ms=3.2, start_ms=530.0)


@pytest.fixture(scope="module")
def config() -> Config:
    return load_sale(EXAMPLES / "live-room.toml", {})


def told(config: Config, demand: Demand, stack: StackFigures = STACK, seed: int = 1) -> DemoFigures:
    return predict(config, demand, stack, [random.Random(seed)])


def test_the_demo_that_comes_along_sheds_nobody(config: Config) -> None:
    demand = load_demand(EXAMPLES / "live-room-demand.csv")
    figures = told(config, demand)
    # 950 announced requests/s with 30% headroom, at 100 a replica.
    assert figures.replicas_peak == 13
    assert figures.shed_share == 0.0
    assert figures.requests > sum(demand.rates)  # some of whom it is sold out for try something else
    assert 15.0 < figures.p99_ms < 30.0  # most answers are sold-out ones, which wait for looks 20 ms apart


def test_what_nobody_announced_is_shed_until_capacity_is_there(config: Config) -> None:
    unknown = msgspec.structs.replace(config, calendar=())
    demand = Demand((10.0,) * 50 + (800.0,) * 14 + (10.0,) * 6)
    surprised, warned = told(unknown, demand), told(config, demand)
    assert surprised.shed_share > 0.05 > warned.shed_share
    assert surprised.p99_ms > config.counter.queue_wait_ms_max > warned.p99_ms
    assert surprised.replicas_peak > 6  # the cloud came


def test_one_seed_gives_one_prediction_and_several_their_mean(config: Config) -> None:
    demand = Demand((10.0,) * 50 + (300.0,) * 10)
    one, other = told(config, demand, seed=1), told(config, demand, seed=2)
    assert one == told(config, demand, seed=1)
    both = predict(config, demand, STACK, [random.Random(1), random.Random(2)])
    assert both.requests == pytest.approx((one.requests + other.requests) / 2)


def test_slower_starts_shed_more(config: Config) -> None:
    unknown = msgspec.structs.replace(config, calendar=())
    demand = Demand((10.0,) * 50 + (800.0,) * 14)
    slow = msgspec.structs.replace(STACK, start_ms=2_900.0)
    assert told(unknown, demand, slow).shed_share > 1.2 * told(unknown, demand).shed_share


def test_the_crowd_and_the_sale_are_those_of_the_configuration(config: Config) -> None:
    assert config.crowd is not None
    (sale,) = config.sales_from(0)
    settings = path_settings(100.0, config, config.crowd, sale, STACK)
    assert (settings.deadline_ms, settings.retries_max, settings.hold_s) == (250, 2, 12.0)
    assert (settings.opens_ms, settings.closes_ms) == (45_000, 72_000)
    assert settings.stock < 1_500  # some orders are for several units


def test_without_a_crowd_there_is_no_demo(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"\[crowd\]"):
        told(msgspec.structs.replace(config, crowd=None), Demand((1.0,)))


# --- what a run measured ---


def second(number: int, sent: int, p50_ms: float, p99_ms: float, **answers: int) -> dict[str, Any]:
    return {"second": number, "sent": sent, "answers": answers, "p50_ms": p50_ms, "p99_ms": p99_ms}


def write_report(path: Path, seconds: list[dict[str, Any]]) -> Path:
    fleet = [{"second": one["second"], "capacity_by_zone": {"a": 300.0, "b": 100.0}} for one in seconds]
    report = {
        "replicas_peak": {"a": 3, "b": 1},
        "shed_share": 0.25,
        "p99_ms": 24.0,
        "requests": 1_000,
        "acknowledged": 90,
        "seconds": seconds,
        "fleet": fleet,
        "more": "is ignored",
    }
    path.write_text(json.dumps(report))
    return path


def test_the_stack_is_measured_where_nothing_waits(tmp_path: Path) -> None:
    seconds = [
        second(0, 5, 9.0, 9.0, page=5),  # too few
        second(1, 100, 1.0, 3.0, page=100),
        second(2, 200, 2.0, 4.0, page=300),
        second(3, 350, 50.0, 90.0, page=350),  # busy
        second(4, 100, 12.0, 24.0, **{"409 sold_out": 90, "200 page": 10}),
    ]
    found, report = read_report(write_report(tmp_path / "report.json", seconds))
    assert (found.replicas_peak, found.shed_share, found.p99_ms) == (4.0, 0.25, 24.0)
    stack = measured_in(report, [400.0, 600.0, 500.0])
    assert (stack.p50_ms, stack.p99_ms, stack.start_ms) == (1.75, 3.75, 500.0)
    assert stack.look_ms == pytest.approx((24.0 - stack.mean_ms) / 0.99)


def test_a_run_that_measures_nothing_is_refused(tmp_path: Path) -> None:
    _, report = read_report(write_report(tmp_path / "report.json", [second(0, 390, 50.0, 90.0, page=390)]))
    with pytest.raises(ConfigError, match="calibrate on another"):
        measured_in(report, [400.0])
    with pytest.raises(ConfigError, match="springtide demo"):
        read_report(tmp_path / "missing.json")
