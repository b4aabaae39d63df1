"""Which images go where and when, and that it is carried out within its limits."""

import asyncio

import pytest

from springtide.decide.images import (
    ZoneImages,
    image_demands,
    plan_collect,
    plan_images,
    plan_prune,
    prefetch_ms,
    warm_ms,
)
from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.images import MemoryImage, MemoryImageCache, MemoryImageEngine, MemoryOrigin
from springtide.drivers.registry_copy import Rate
from springtide.errors import ImageError, ImageUnavailable
from springtide.fleet.image_keeper import ImageKeeper
from springtide.fleet.images import ACTIONS_MAX, ImageOutcome, Images, ImageZone
from springtide.model import (
    CachedImage,
    CalendarEvent,
    CollectImages,
    EngineImage,
    ImageAction,
    ImageDemand,
    ImageLine,
    ImageName,
    ImagePolicy,
    PrefetchImage,
    PruneImages,
    ServiceSpec,
    ServiceWish,
    WarmImage,
)

NOW = 1_700_000_000_000
MINUTE = 60_000
MB = 1_000_000
DIGEST = "sha256:" + "0" * 64

LINE = ImageLine("cloud", line_bytes_per_s=10 * MB, cache_bytes_per_s=100 * MB, unpack_bytes_per_s=50 * MB, pulls_max=4)
LATE = ImagePolicy(safety=1.0, slack_ms=0, warm_early=False)


def demand(reference: str = "counter:1", **changes: object) -> ImageDemand:
    given: dict[str, object] = {"size_bytes": 200 * MB, "missing_bytes": 200 * MB, "by_ms": NOW + 60 * MINUTE}
    return ImageDemand(zone="cloud", reference=reference, **(given | changes))  # type: ignore[arg-type] # a table of cases


def references(actions: list[ImageAction]) -> list[str]:
    return [action.reference for action in actions if isinstance(action, WarmImage | PrefetchImage)]


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("counter", ("counter", "latest", "")),
        ("shop/counter:1.2_x", ("shop/counter", "1.2_x", "")),
        (f"counter@{DIGEST}", ("counter", "", DIGEST)),
        (f"counter:1@{DIGEST}", ("counter", "1", DIGEST)),
    ],
)
def test_a_reference_is_read_in_its_parts(reference: str, parts: tuple[str, str, str]) -> None:
    assert ImageName.parse(reference) == ImageName(*parts)


@pytest.mark.parametrize("reference", ["", "A:1", "a:", "h:5000/a:1", "a@sha256:1", "a//b:1", "a:1 ", "a" * 256])
def test_what_is_no_reference_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="NAME:TAG"):
        ImageName.parse(reference)


def test_the_line_and_the_engines_make_the_time() -> None:
    assert warm_ms(demand(), LINE) == 20_000
    # Eight nodes: the cache's network needs 16 s, unpacking four at a time 2 × 4 s.
    assert prefetch_ms(demand(nodes=8), LINE) == 16_000
    # With a fast network, the unpacking counts.
    assert prefetch_ms(demand(nodes=8), ImageLine("cloud", 1, 10_000 * MB, 50 * MB, 4)) == 8_000


def test_one_cache_at_10_gbit_needs_42_minutes_for_3125_nodes() -> None:
    line = ImageLine("cloud", line_bytes_per_s=1e9, cache_bytes_per_s=10e9 / 8, pulls_max=3125)
    assert prefetch_ms(demand(size_bytes=1_000 * MB, nodes=3125), line) / MINUTE == pytest.approx(42, abs=0.5)


@pytest.mark.parametrize(("before_s", "begun"), [(37, []), (36, ["counter:1"]), (0, ["counter:1"])])
def test_a_copy_begins_when_x_is_left_and_not_before(before_s: int, begun: list[str]) -> None:
    # 20 s over the line and 16 s onto eight nodes: x is 36 s.
    due = demand(by_ms=NOW + before_s * 1000, nodes=8)
    assert references(plan_images(NOW, [due], [LINE], LATE)) == begun


def test_margin_and_slack_make_x_longer() -> None:
    policy = ImagePolicy(safety=2.0, slack_ms=10_000, warm_early=False)
    due = demand(nodes=8)
    assert plan_images(due.by_ms - 82_001, [due], [LINE], policy) == []
    assert references(plan_images(due.by_ms - 82_000, [due], [LINE], policy)) == ["counter:1"]


def test_images_for_one_line_wait_for_each_other() -> None:
    # Both are due at the same time, and each takes 20 s: the first has to begin 40 s before.
    both = [demand("counter:1"), demand("recorder:1")]
    at = both[0].by_ms
    assert plan_images(at - 41_000, both, [LINE], LATE) == []
    assert references(plan_images(at - 40_000, both, [LINE], LATE)) == ["counter:1"]
    assert references(plan_images(at - 20_000, both, [LINE], LATE)) == ["counter:1", "recorder:1"]


def test_what_is_late_goes_first_then_what_is_needed_then_what_can_wait() -> None:
    late = demand("late:1", by_ms=NOW + 1000)
    needed = demand("needed:1", by_ms=0)
    early = demand("early:1", by_ms=NOW + 600 * MINUTE)
    planned = plan_images(NOW, [early, needed, late], [LINE], ImagePolicy())
    assert references(planned) == ["late:1", "needed:1", "early:1"]
    assert references(plan_images(NOW, [early, needed, late], [LINE], ImagePolicy(begun_max=1))) == ["late:1"]


def test_engines_get_it_only_when_the_cache_has_it_and_the_time_has_come() -> None:
    here = demand(missing_bytes=0, engines=("e1", "e2"), nodes=2)
    at = here.by_ms - 4_000  # two nodes: 4 s, by network and by unpacking
    assert plan_images(at - 1, [here], [LINE], LATE) == []
    planned = plan_images(at, [here], [LINE], LATE)
    assert [(action.engine, action.reference) for action in planned if isinstance(action, PrefetchImage)] == [
        ("e1", "counter:1"),
        ("e2", "counter:1"),
    ]
    missing = demand(engines=("e1", "e2"), nodes=2, by_ms=NOW)
    assert all(isinstance(action, WarmImage) for action in plan_images(NOW, [missing], [LINE], LATE))


def test_two_services_with_one_image_need_it_once() -> None:
    twice = [demand(by_ms=0, reason="a"), demand(by_ms=0, reason="b")]
    assert references(plan_images(NOW, twice, [LINE], LATE)) == ["counter:1"]


def wish(name: str, image: str, previous: str = "") -> ServiceWish:
    before = ServiceSpec(name, "r0", image=previous) if previous else None
    return ServiceWish(ServiceSpec(name, "r1", image=image), 100.0, previous=before)


def test_demands_are_the_images_of_services_where_they_are_missing() -> None:
    zones = [
        ZoneImages("cloud", (), {"e1": frozenset({"counter:2"}), "e2": frozenset()}, nodes=5),
        ZoneImages("idc", (CachedImage("counter:2", DIGEST, 7),), {}, nodes=0),
    ]
    event = CalendarEvent("sale", NOW + 60 * MINUTE, MINUTE, 1000.0, ready_ms=5000)
    over = CalendarEvent("old", NOW - 60 * MINUTE, MINUTE, 1000.0, ready_ms=5000)
    wishes = [wish("counter", "counter:2", "counter:1"), wish("shell", ""), wish("foreign", "nobody/has:1")]
    found = image_demands(wishes, {"counter": [over, event]}, {"counter:2": 7, "counter:1": 6}, zones, NOW)
    assert [(each.zone, each.reference, each.missing_bytes, each.by_ms) for each in found] == [
        ("cloud", "counter:2", 7, event.opens_ms - 5000),
        ("cloud", "counter:1", 6, 0),
        ("idc", "counter:2", 0, event.opens_ms - 5000),
        ("idc", "counter:1", 6, 0),
    ]
    # One of the two engines has it; of five nodes, four will have to pull it.
    assert (found[0].engines, found[0].nodes) == (("e2",), 4)
    assert "sale" in found[0].reason


def cached(reference: str, size: int, used_ms: int = 0) -> CachedImage:
    return CachedImage(reference, DIGEST, size, used_ms)


def test_a_cache_above_its_limit_loses_what_was_used_longest_ago() -> None:
    policy = ImagePolicy(cache_bytes_max=100)
    images = (cached("wanted:1", 40), cached("kept:1", 20), cached("old:1", 30, 1), cached("new:1", 30, 2))
    zone = ZoneImages("cloud", images, {})
    wanted = [demand("wanted:1", missing_bytes=0, by_ms=0)]
    plan = plan_collect(NOW, zone, wanted, ["kept:1"], policy)
    assert plan is not None
    assert plan.keep == ("kept:1", "new:1", "wanted:1")
    assert plan_collect(NOW, zone, wanted, ["kept:1"], ImagePolicy(cache_bytes_max=120)) is None


def test_nothing_is_collected_while_an_events_images_are_on_their_way() -> None:
    zone = ZoneImages("cloud", (cached("old:1", 200),), {})
    assert plan_collect(NOW, zone, [demand()], [], ImagePolicy(cache_bytes_max=100)) is None
    assert plan_collect(NOW, zone, [demand(missing_bytes=0)], [], ImagePolicy(cache_bytes_max=100)) is not None


def test_an_engine_keeps_the_newest_revisions_what_runs_and_what_is_wanted() -> None:
    images = [EngineImage(f"shop/counter:{n}", f"id{n}", 1, NOW + n, in_use=n == 2) for n in range(6)]
    images.append(EngineImage("postgres:9", "other", 1, 0))
    plan = plan_prune("cloud", "e1", images, ["shop/counter:1", "shop/counter:5"], ImagePolicy(revisions=2))
    assert plan is not None
    assert plan.references == ("shop/counter:3", "shop/counter:0")
    assert plan_prune("cloud", "e1", images, ["shop/counter:5"], ImagePolicy(revisions=6)) is None


class World:
    """One zone with engines, in memory; 100 MB cross the line in 100 s, and a pull takes 10 s."""

    def __init__(self, engines: int = 5, pulls_max: int = 2) -> None:
        self.clock = VirtualClock()
        self.origin = MemoryOrigin()
        for name in ("a", "b", "c", "d"):
            self.origin.push(f"{name}:1", MemoryImage(DIGEST, {f"layer-{name}": 100 * MB}))
        self.cache = MemoryImageCache(self.origin, self.clock, bytes_per_s=1 * MB)
        self.engines = {f"e{at}": MemoryImageEngine(self.cache, self.clock, pull_s=10.0) for at in range(engines)}
        self.outcomes: list[ImageOutcome] = []
        zones = {"cloud": ImageZone(self.cache, self.engines, pulls_max)}
        self.images = Images(zones, self.clock, self.outcomes.append)

    def busy(self) -> int:
        return len(self.images.under_way)

    async def have(self) -> int:
        return sum([len(await engine.images()) for engine in self.engines.values()])


def warm(name: str) -> WarmImage:
    return WarmImage("cloud", f"{name}:1", 0, "needed")


async def test_a_plan_is_carried_out_in_the_background_and_nothing_is_begun_twice() -> None:
    world = World()
    world.images.begin([warm("a")])
    await world.clock.advance(1.0)
    world.images.begin([WarmImage("cloud", "a:1", 0, "needed more")])
    assert world.busy() == 1
    await world.clock.advance(100.0)
    assert [(outcome.error, outcome.bytes) for outcome in world.outcomes] == [("", 100 * MB)]
    assert world.busy() == 0
    assert [image.reference for image in await world.images.list("cloud")] == ["a:1"]


async def test_an_operator_who_warms_what_the_plan_warms_waits_for_the_same_copy() -> None:
    world = World()
    world.images.begin([warm("a")])
    await world.clock.advance(50.0)
    mine = asyncio.create_task(world.images.warm("cloud", "a:1"))
    await world.clock.advance(51.0)
    assert (await mine).copied_bytes == 0
    assert world.cache.copied_bytes == 100 * MB


async def test_engines_pull_a_few_at_a_time() -> None:
    world = World(engines=5, pulls_max=2)
    await asyncio.gather(world.images.warm("cloud", "a:1"), world.clock.advance(101.0))
    world.images.begin([PrefetchImage("cloud", name, "a:1", 0, "event") for name in world.engines])
    counts = []
    for _ in range(3):
        await world.clock.advance(10.0)
        counts.append(await world.have())
    assert counts == [2, 4, 5]
    assert world.cache.copied_bytes == 100 * MB


async def test_what_fails_is_tried_again_and_then_said() -> None:
    world = World()
    world.origin.up = False
    world.images.begin([warm("a")])
    await world.clock.advance(1.0)
    world.origin.up = True
    await world.clock.advance(200.0)
    assert [outcome.error for outcome in world.outcomes] == [""]
    world.origin.up = False
    world.images.begin([warm("b")])
    await world.clock.advance(60.0)
    assert "origin does not answer" in world.outcomes[-1].error
    assert world.busy() == 0


async def test_what_nobody_has_fails_and_the_rest_goes_on() -> None:
    world = World()
    world.images.begin([warm("nothing"), warm("a"), PruneImages("cloud", "gone", ("a:1",), "old")])
    await world.clock.advance(120.0)
    assert sorted(bool(outcome.error) for outcome in world.outcomes) == [False, False, True]
    assert [image.reference for image in await world.images.list("cloud")] == ["a:1"]


async def test_collecting_and_pruning_go_the_same_way() -> None:
    world = World(engines=1)
    await asyncio.gather(world.images.warm("cloud", "a:1"), world.clock.advance(101.0))
    await asyncio.gather(world.images.prefetch("cloud", "e0", "a:1"), world.clock.advance(11.0))
    world.images.begin([PruneImages("cloud", "e0", ("a:1",), "old"), CollectImages("cloud", (), "full")])
    await world.clock.advance(1.0)
    assert await world.have() == 0
    assert await world.images.list("cloud") == []
    assert {outcome.bytes for outcome in world.outcomes} == {0, 100 * MB}


async def test_there_is_a_limit_of_what_is_under_way() -> None:
    world = World()
    world.images.begin([WarmImage("cloud", f"x{at}:1", 0, "") for at in range(ACTIONS_MAX + 1)])
    assert world.busy() == ACTIONS_MAX
    assert [outcome.error for outcome in world.outcomes] == [f"not begun: {ACTIONS_MAX} image actions are under way"]
    await world.images.close()
    assert world.busy() == 0


async def test_unknown_zones_and_engines_are_named() -> None:
    world = World(engines=1)
    with pytest.raises(ImageError, match=r"no zone 'moon'.*cloud"):
        await world.images.warm("moon", "a:1")
    with pytest.raises(ImageError, match=r"no engine 'e9'.*e0"):
        await world.images.prefetch("cloud", "e9", "a:1")


async def test_engines_that_have_the_image_start_while_everything_is_down() -> None:
    world = World(engines=2)
    await asyncio.gather(world.images.prefetch("cloud", "e0", "a:1"), world.clock.advance(120.0))
    world.cache.up = world.origin.up = False
    assert await world.engines["e0"].ensure("a:1") == "a:1"
    with pytest.raises(ImageUnavailable):
        await world.engines["e1"].ensure("a:1")


def keeper(world: World, policy: ImagePolicy) -> ImageKeeper:
    """The zone's line takes 100 s for an image; nobody has to wait for anything else."""
    origin = MemoryImageCache(world.origin, world.clock)
    line = ImageLine("cloud", line_bytes_per_s=1 * MB, cache_bytes_per_s=1000 * MB, unpack_bytes_per_s=10 * MB)
    return ImageKeeper(world.images, origin, [line], policy, world.clock)


async def prepared(world: World, policy: ImagePolicy) -> ImageKeeper:
    """A keeper whose origin lists what was pushed."""
    made = keeper(world, policy)
    for name in ("a", "b"):
        await made._origin.warm(f"{name}:1")
    return made


async def test_before_an_event_the_cache_is_warm_and_then_the_engines_have_it() -> None:
    world = World(engines=2)
    kept = await prepared(world, ImagePolicy(safety=1.0, slack_ms=0, warm_early=False))
    # 100 s over the line, and 10 s to unpack on both engines at once: x is 110 s.
    opens_ms = world.clock.now_ms() + 300_000
    events = {"counter": [CalendarEvent("sale", opens_ms, MINUTE, 1000.0, ready_ms=0)]}
    seen: dict[int, list[str]] = {}
    for _ in range(30):
        actions = await kept.tick([wish("counter", "a:1")], events, {"cloud": 2})
        left_s = (opens_ms - world.clock.now_ms()) // 1000
        seen.setdefault(left_s, []).extend(type(action).__name__ for action in actions)
        await world.clock.advance(10.0)
    begun = {left_s: names for left_s, names in seen.items() if names}
    assert max(begun) == 110
    assert begun[110] == ["WarmImage"]
    assert begun[10] == ["PrefetchImage", "PrefetchImage"]
    assert await world.have() == 2
    assert world.cache.copied_bytes == 100 * MB


async def test_a_zone_that_does_not_answer_is_left_alone() -> None:
    world = World(engines=1)
    kept = await prepared(world, ImagePolicy())
    world.cache.up = False
    assert await kept.tick([wish("counter", "a:1")], {}, {}) == []
    world.cache.up = True
    assert references(await kept.tick([wish("counter", "a:1")], {}, {})) == ["a:1"]
    await world.images.close()


async def test_without_the_origin_engines_still_get_what_the_cache_has() -> None:
    world = World(engines=1)
    kept = await prepared(world, ImagePolicy())
    await asyncio.gather(world.images.warm("cloud", "a:1"), world.clock.advance(101.0))
    assert isinstance(kept._origin, MemoryImageCache)
    kept._origin.up = world.origin.up = False
    events = {"counter": [CalendarEvent("sale", world.clock.now_ms() + 1000, MINUTE, 1000.0, ready_ms=0)]}
    assert references(await kept.tick([wish("counter", "a:1")], events, {})) == ["a:1"]
    await world.clock.advance(11.0)
    assert await world.have() == 1


async def test_old_images_go_from_engines_and_from_a_full_cache() -> None:
    world = World(engines=1)
    policy = ImagePolicy(revisions=1, cache_bytes_max=100 * MB)
    world.origin.push("a:2", MemoryImage("sha256:" + "1" * 64, {"layer-a2": 50 * MB}))
    kept = await prepared(world, policy)
    await kept._origin.warm("a:2")
    for reference in ("a:1", "a:2"):
        await asyncio.gather(world.images.prefetch("cloud", "e0", reference), world.clock.advance(200.0))
    actions = await kept.tick([wish("counter", "a:2")], {}, {})
    assert [type(action).__name__ for action in actions] == ["CollectImages", "PruneImages"]
    await world.clock.advance(1.0)
    assert [image.reference for image in await world.images.list("cloud")] == ["a:2"]
    assert [image.reference for image in await world.engines["e0"].images()] == ["a:2"]


async def test_what_passes_a_rate_takes_its_time_whoever_sends_it() -> None:
    clock = VirtualClock()
    rate, passed = Rate(clock, 1 * MB), list[float]()

    async def send() -> None:
        await rate.pass_by(2 * MB)
        passed.append(clock.monotonic_s())

    both = asyncio.gather(send(), send())
    await clock.advance(3.9)
    assert passed == [2.0]
    await clock.advance(0.1)
    await both
    assert passed == [2.0, 4.0]
    # What was not used is not saved up.
    await clock.advance(100.0)
    later = asyncio.create_task(send())
    await clock.advance(1.9)
    assert not later.done()
    await clock.advance(0.1)
    await later
