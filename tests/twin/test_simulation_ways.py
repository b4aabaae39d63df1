"""Lines and caches of a simulation: who gets how much, and when."""

import pytest

from springtide.model import ZoneKind
from springtide.twin.kernel import Kernel
from springtide.twin.simulation.delivery import Delivery
from springtide.twin.simulation.lines import Lines
from springtide.twin.simulation.pulls import PullQueue
from springtide.twin.simulation.scenario import DemandSettings, Scenario, Service, SimLine, SimZone


class Nodes:
    """When each node had its image, s."""

    def __init__(self, kernel: Kernel, queue: PullQueue) -> None:
        self.kernel, self.queue = kernel, queue
        self.done: dict[str, float] = {}

    def pull(self, name: str) -> None:
        def note() -> None:
            self.done[name] = self.kernel.now_ms / 1000

        self.queue.pull(note)


def nodes(cache: float = 100.0, node: float = 50.0) -> Nodes:
    kernel = Kernel(0)
    return Nodes(kernel, PullQueue(kernel, 100.0, cache, node))


def test_one_node_pulls_as_fast_as_it_can() -> None:
    world = nodes()
    world.pull("a")
    world.kernel.run(60_000)
    assert world.done == {"a": pytest.approx(2.0)}


def test_many_nodes_share_the_cache_equally() -> None:
    world = nodes()
    for name in "abcd":
        world.pull(name)
    world.kernel.run(60_000)
    assert world.done == {name: pytest.approx(4.0) for name in "abcd"}


def test_one_that_comes_later_is_done_later_and_slows_the_others() -> None:
    """a and b have 50 MB/s each for a second, then three share 100: 50 MB left take 1.5 s; c has 50 and goes on."""
    world = nodes()
    world.pull("a")
    world.pull("b")
    world.kernel.run(1_000)
    world.pull("c")
    world.kernel.run(60_000)
    assert world.done == {
        "a": pytest.approx(2.5, abs=0.01),
        "b": pytest.approx(2.5, abs=0.01),
        "c": pytest.approx(3.5, abs=0.02),
    }


def test_while_the_cache_is_gone_nothing_moves() -> None:
    world = nodes()
    world.pull("a")
    world.kernel.run(1_000)
    world.queue.open(is_open=False)
    world.kernel.run(31_000)
    assert world.done == {}
    world.queue.open(is_open=True)
    world.kernel.run(60_000)
    assert world.done == {"a": pytest.approx(32.0)}


ZONES = (
    SimZone("idc", ZoneKind.IDC, nodes=1),
    SimZone("near", ZoneKind.CLOUD, nodes=1, lines=("thick", "thin"), cache_gbit=8),
    SimZone("far", ZoneKind.CLOUD, nodes=1, lines=("thin",), cache_gbit=8),
)
LINES = (
    SimLine("thick", gbit=8, round_trip_ms=2, request_bytes=1_000),
    SimLine("thin", gbit=2, round_trip_ms=5, request_bytes=1_000),
)


def test_traffic_spreads_over_the_lines_of_a_zone_by_their_bandwidth() -> None:
    lines = Lines(LINES, ZONES)
    lines.carry({"near": 500_000, "idc": 1e9})
    assert lines.load == {"thick": pytest.approx(0.4), "thin": pytest.approx(0.4)}
    lines.carry({"near": 500_000, "far": 100_000})
    assert lines.load == {"thick": pytest.approx(0.4), "thin": pytest.approx(0.8)}


def test_a_cut_line_leaves_the_other_and_cuts_off_who_has_no_other() -> None:
    lines = Lines(LINES, ZONES)
    assert lines.carried({"near": 2e6, "idc": 1e9}) == {"near": pytest.approx(1_250_000), "idc": 1e9}
    assert lines.round_trip_ms("near") == 2
    lines.narrow("thick", 0.0)
    assert lines.reaches("near")
    assert lines.carried({"near": 2e6}) == {"near": pytest.approx(250_000)}
    assert lines.round_trip_ms("near") == 5
    lines.carry({"near": 100_000})
    assert lines.load["thin"] == pytest.approx(0.4)
    lines.narrow("thin", 0.0)
    assert lines.carried({"near": 1.0, "far": 1.0, "idc": 1.0}) == {"near": 0.0, "far": 0.0, "idc": 1.0}
    assert not lines.reaches("far")
    assert lines.reaches("idc")


def test_zones_that_share_a_line_share_what_it_carries() -> None:
    """250,000/s fit over the thin line; the far zone asks for as many, the near one for a fifth of its own."""
    lines = Lines(LINES, ZONES)
    carried = lines.carried({"near": 625_000, "far": 250_000})
    assert carried == {"near": pytest.approx(500_000 + 125_000 * 2 / 3), "far": pytest.approx(250_000 * 2 / 3)}
    lines.carry(carried)
    assert lines.load["thin"] == 1.0


def delivery(share_max: float = 0.8) -> tuple[Kernel, Lines, Delivery]:
    kernel = Kernel(0)
    scenario = Scenario(name="s", demand=DemandSettings(), zones=ZONES, lines=LINES, service=Service(image_mb=1_000))
    assert scenario.policy.line_share_max == share_max
    lines = Lines(LINES, ZONES)
    return kernel, lines, Delivery(kernel, scenario, lines)


def test_an_image_crosses_the_line_once_and_then_reaches_the_nodes() -> None:
    kernel, lines, images = delivery()
    pulled: list[float] = []
    images.pull("far", lambda: pulled.append(kernel.now_ms / 1000))
    images.pull("idc", lambda: pulled.append(kernel.now_ms / 1000))
    images.decide()
    assert set(images.missing) == {"near", "far"}
    seconds = 0
    while images.missing and seconds < 60:
        rate = images.advance(1.0)
        lines.carry({}, rate)
        seconds += 1
        kernel.run(seconds * 1_000)
    # Two copies at once: half of 80% of 2 Gbit/s at least for the far one, so 1,000 MB in ten seconds.
    assert 5 <= seconds <= 12
    kernel.run(120_000)
    assert pulled[0] == pytest.approx(0.8)  # a node's 10 Gbit/s
    assert pulled[1] == pytest.approx(seconds - 1 + 1.0, abs=1.1)  # the cache's 8 Gbit/s, after the copy


def test_requests_leave_less_of_the_line_to_images() -> None:
    _, lines, images = delivery()
    images.decide()
    lines.carry({"far": 250_000})
    slow = images.advance(1.0)
    lines.carry({})
    assert images.advance(1.0) > slow


def test_a_registry_that_is_gone_holds_its_zone_up() -> None:
    kernel, lines, images = delivery()
    images.decide()
    images.set_gone("far", gone=True)
    for second in range(1, 30):
        lines.carry({}, images.advance(1.0))
        kernel.run(second * 1_000)
    assert list(images.missing) == ["far"]
    images.set_gone("far", gone=False)
    for second in range(30, 60):
        lines.carry({}, images.advance(1.0))
        kernel.run(second * 1_000)
    assert list(images.missing) == []
