"""What `nodes`, `offers` and `cost` make of a view, and what a sweep makes of the leader's words."""

import json
import os
from pathlib import Path

import msgspec
import pytest

from springtide.cli.cloud_view import View, look, with_own
from springtide.cli.fleet_cost import cost_of
from springtide.cli.fleet_nodes import EACH_MAX, run_nodes
from springtide.cli.platform_change import leaving_zones
from springtide.cli.platform_folder import PlatformFolder, PlatformSettings, Running
from springtide.cli.platform_options import Here
from springtide.cli.sweep_claims import FRESH_MS, claims_in, claims_of
from springtide.config import CloudSettings, Config, parse
from springtide.decide.strays import Leaders
from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet_state import MemoryFleetState
from springtide.drivers.pids import started_ticks
from springtide.drivers.system import SystemClock
from springtide.errors import Refused, UserError
from springtide.fleet.cloud_status import CLOUD, CloudStatus, encode_cloud
from springtide.fleet.status import STATUS, FleetStatus, encode_status
from springtide.model import (
    CalendarEvent,
    Intent,
    Market,
    Node,
    NodeState,
    Offer,
    Purchase,
    Quota,
    RentNodes,
)

NOW = 1_800_000_000_000
H = 3_600_000


def configured(**cloud: object) -> Config:
    return parse(
        {
            "zones": [
                {"name": "a", "kind": "idc", "nodes_max": 2, "cores_per_node": 4},
                {"name": "h", "kind": "cloud", "nodes_max": 70, "cores_per_node": 8, "price_cny_per_node_h": 3.6},
            ],
            "services": [{"name": "web", "port": 8080, "requests_per_s": 50.0, "command": "true"}],
            "cloud": cloud,
        },
        "springtide.toml",
        {},
    )


def node(name: str, market: Market = Market.ON_DEMAND, price: float = 0.0, cores: int = 8) -> Node:
    return Node(name, "h", NodeState.READY, cores, "t", NOW, market=market, price_fen_per_h=price, rented_ms=NOW - H)


def view(cloud: CloudStatus, **settings: object) -> View:
    return View(NOW, "the control loop", configured(**settings), cloud)


def test_what_is_spent_is_by_offer_and_a_node_without_a_price_has_its_zones() -> None:
    idc = Node("a-0", "a", NodeState.READY, 4, "", 0)
    nodes = (idc, node("x"), node("y", price=200.0), node("z", Market.SPOT, 40.0))
    quotas = (Quota(Market.SPOT, 100, 8, "h"),)
    found = cost_of(view(CloudStatus(NOW, nodes, cost_fen=123.0, quotas=quotas), spend_max_cny_per_h=9.0))
    assert found["per_h"] == pytest.approx(3.6 + 2.0 + 0.4)
    assert (found["so_far"], found["per_h_max"], found["forecast"]) == (1.23, 9.0, None)
    assert [(one["market"], one["nodes"], one["cores"], one["per_h"]) for one in found["groups"]] == [
        ("on_demand", 2, 16, pytest.approx(5.6)),
        ("spot", 1, 8, pytest.approx(0.4)),
    ]
    assert found["zones"] == [{"zone": "h", "nodes": 3, "nodes_max": 70}]
    assert found["shares"]["spot"] == pytest.approx(1 / 3)
    assert found["quotas"] == [{"market": "spot", "zone": "h", "used_cores": 8, "limit_cores": 100}]


def test_the_forecast_is_what_runs_until_the_last_event_ends_and_what_is_scheduled_until_its_own() -> None:
    events = (CalendarEvent("old", NOW - 2 * H, H, 1.0, 0), CalendarEvent("sale", NOW + H, H, 1.0, 0))
    bought = Purchase("h", "t", Market.ON_DEMAND, 10, 80, 100.0, order_ms=NOW + H, needed_until_ms=NOW + 3 * H)
    found = cost_of(view(CloudStatus(NOW, (node("x", price=200.0),), cost_fen=500.0, events=events)))
    assert found["until_ms"] == NOW + 2 * H
    assert found["forecast"] == pytest.approx(5.0 + 2.0 * 2)
    both = CloudStatus(NOW, (node("x", price=200.0),), cost_fen=500.0, events=events, purchases=(bought,))
    found = cost_of(view(both))
    assert found["until_ms"] == NOW + 3 * H
    assert found["forecast"] == pytest.approx(5.0 + 2.0 * 3 + 10 * 1.0 * 2)
    assert cost_of(view(CloudStatus(NOW, events=events[:1])))["until_ms"] is None


def test_what_is_owned_stands_before_what_is_for_rent() -> None:
    config = configured()
    own, paper = with_own(config, ())
    assert (own.zone, own.market, own.price_fen_per_h, own.stock) == ("a", Market.IDC, 0.0, 2)
    assert (paper.zone, paper.market, paper.price_fen_per_h) == ("h", Market.ON_DEMAND, 360.0)
    offer = Offer("h", "ecs.c7.large", Market.SPOT, 2, 4096, 9.0)
    assert [one.market for one in with_own(config, (offer,))] == [Market.IDC, Market.SPOT]


TOML = """
[[zones]]
name = "a"
kind = "idc"
nodes_max = %NODES%
cores_per_node = 4

[[services]]
name = "web"
port = 8080
requests_per_s = 50
command = "true"
"""


async def test_many_nodes_are_shown_by_group_unless_each_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "springtide.toml"
    path.write_text(TOML.replace("%NODES%", str(EACH_MAX + 1)))
    here = Here(tmp_path / "data")
    assert await run_nodes(here, path, {}, "", each=False) == 0
    said = capsys.readouterr().out
    assert "a-7" not in said
    assert "--each" in said
    await run_nodes(here, path, {}, "", each=True)
    assert "a-7" in capsys.readouterr().out
    await run_nodes(Here(tmp_path / "data", json=True), path, {}, "a", each=False)
    assert len(json.loads(capsys.readouterr().out)["nodes"]) == EACH_MAX + 1
    with pytest.raises(UserError, match="no zone 'b'"):
        await run_nodes(here, path, {}, "b", each=False)


async def test_asking_a_cloud_on_paper_writes_nothing_into_its_file(tmp_path: Path) -> None:
    path, kept = tmp_path / "springtide.toml", tmp_path / "cloud.json"
    zone = '[[zones]]\nname = "h"\nkind = "cloud"\nnodes_max = 2\ncores_per_node = 8\nprice_cny_per_node_h = 1.0\n'
    path.write_text(zone + TOML.replace("%NODES%", "1"))
    rented = {
        "node_id": "h-1",
        "zone": "h",
        "cores": 8,
        "client_token": "t",
        "rented_ms": 1,
        "ready_ms": 2,
        "price_fen_per_h": 100,
        "release_at_ms": 3,
    }
    kept.write_text(json.dumps({"rented_total": 1, "nodes": {"h-1": rented}}))
    before = kept.read_bytes()
    found = await look(tmp_path, path, {})
    assert [one.node_id for one in found.cloud.nodes] == ["a-0"]  # its time was over long ago
    assert found.cloud.cost_fen > 0
    assert kept.read_bytes() == before


async def test_a_leader_claims_what_it_lists_and_what_it_buys_while_it_speaks() -> None:
    clock = VirtualClock()
    state = MemoryFleetState(clock)
    assert (await claims_in(state, clock.now_ms())).leaders is Leaders.DEAD
    term = (await state.lead("one", 600_000)).term
    now_ms = clock.now_ms()
    await state.remember(term, STATUS, encode_status(FleetStatus(now_ms, 1, "one", term)))
    claims = await claims_in(state, now_ms)
    assert (claims.leaders, claims.heard_ms) == (Leaders.RUNNING, 0)
    await state.remember(term, CLOUD, encode_cloud(CloudStatus(now_ms, (node("x"),))))
    order = RentNodes("h", 3, "token-2", "more")
    await state.begin(term, [Intent("1", term, "web", msgspec.json.encode(order).decode(), now_ms)])
    claims = await claims_in(state, now_ms + FRESH_MS)
    assert (claims.leaders, claims.heard_ms) == (Leaders.RUNNING, now_ms)
    assert claims.node_ids == {"x"}
    assert claims.tokens == {"t", "token-2"}
    assert (await claims_in(state, now_ms + FRESH_MS + 1)).leaders is Leaders.DEAD


async def test_a_folder_tells_dead_gone_and_not_known_apart(tmp_path: Path) -> None:
    clock = SystemClock()
    folder = PlatformFolder(tmp_path)
    nothing = await claims_of(folder, "shop", clock)
    assert (nothing.leaders, nothing.gone_ms) == (Leaders.GONE, 0)
    folder.prepare()
    settings = PlatformSettings(
        msgspec.structs.replace(configured(), cloud=CloudSettings(installation="shop")),
    )
    folder.keep_settings(settings)
    assert (await claims_of(folder, "shop", clock)).leaders is Leaders.DEAD
    assert (await claims_of(folder, "another", clock)).leaders is Leaders.UNKNOWN
    # It runs, and its state does not answer.
    folder.announce(Running(os.getpid(), started_ticks(os.getpid()), "postgresql://127.0.0.1:1/none"))
    assert (await claims_of(folder, "shop", clock)).leaders is Leaders.UNKNOWN
    folder.forget()
    gone = await claims_of(folder, "shop", clock)
    assert gone.leaders is Leaders.GONE
    assert abs(gone.gone_ms - clock.now_ms()) < 60_000


def test_another_account_needs_everything_taken_down_first() -> None:
    before = PlatformSettings(configured())
    dearer = PlatformSettings(configured(spend_max_cny_per_h=9.0))
    assert leaving_zones(before, dearer) == []
    for change in ({"region": "cn-hangzhou"}, {"installation": "another"}):
        with pytest.raises(Refused, match="springtide down"):
            leaving_zones(before, PlatformSettings(configured(**change)))
