"""An event's file: what it says becomes what is planned, and each mistake is named with its key and the remedy."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from springtide.config.events import ALIBABA_APIS, load_event, parse_event
from springtide.errors import ConfigError
from springtide.model import Market, Quota, StockLevel

EXAMPLE = Path(__file__).parents[2] / "examples" / "kuaishou-event.toml"
SMALL = """
[event]
name = "eleven"
at = 2027-11-11T20:00:00+08:00
lasts_min = 90

[service]
cores = 640
cores_per_replica = 2

[[zones]]
name = "z-a"

[[zones]]
name = "z-b"
quota_eci = 300

[[offers]]
type = "ecs.c7.8xlarge"
cores = 32
memory_gib = 64
price_cny_per_h = 6.5
"""


def parsed(text: str) -> Any:
    return parse_event(tomllib.loads(text), "event.toml")


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parsed(text)
    return str(raised.value).splitlines()


def test_a_small_file_says_enough() -> None:
    event = parsed(SMALL)
    need = event.need()
    assert (need.cores, need.rented_cores, need.replica_cores) == (640, 640, 2.0)
    assert (need.at_ms, need.lasts_ms) == (1_825_934_400_000, 90 * 60_000)
    assert need.wanted_ms == need.at_ms - 60_000
    assert (need.probability, need.apis) == (0.99, ALIBABA_APIS)
    assert [offer.key for offer in event.for_rent()] == [
        "z-a/ecs.c7.8xlarge/on_demand",
        "z-b/ecs.c7.8xlarge/on_demand",
    ]
    assert event.for_rent()[0].price_fen_per_h == pytest.approx(650.0)
    assert event.quotas() == (Quota(Market.ECI, 300, zone="z-b"),)


def test_the_example_is_the_published_size() -> None:
    event = load_event(EXAMPLE)
    need = event.need()
    assert (need.cores, need.free_cores, need.rented_cores) == (120_000, 20_000, 100_000)
    assert need.rooms == {"room-a": 32_000, "room-b": 32_000}
    assert len({offer.instance_type for offer in event.for_rent()}) == 17
    assert len({offer.zone for offer in event.for_rent()}) == 6
    assert {offer.market for offer in event.for_rent()} == {Market.ON_DEMAND, Market.SPOT, Market.ECI}
    by_key = {offer.key: offer for offer in event.for_rent()}
    spot = by_key["cn-beijing-h/ecs.c7.8xlarge/spot"]
    assert spot.price_fen_per_h == pytest.approx(0.35 * by_key["cn-beijing-h/ecs.c7.8xlarge/on_demand"].price_fen_per_h)
    group = by_key["cn-beijing-h/eci-32c64g/eci"]
    assert (group.boot_ms, group.level) == ((15_000, 45_000), StockLevel.LOW)
    assert group.price_fen_per_h == pytest.approx((32 * 0.1764 + 64 * 0.0221) * 100)


@pytest.mark.parametrize(
    ("service", "cores"),
    [
        ("peak_requests_per_s = 1000\ncpu_s_per_request = 0.05", 64),  # 1,000 × 0.05 × 1.25 = 62.5, in replicas of 2
        ("peak_requests_per_s = 1000\ncpu_s_per_request = 0.05\nheadroom = 0", 50),
        ("peak_requests_per_s = 1000\nrequests_per_s_per_replica = 90\nheadroom = 0.1", 26),  # 12.2 → 13 replicas
        ("cores = 77", 77),
        ("cores = 77\npeak_requests_per_s = 1000", 77),
    ],
)
def test_cores_are_reckoned_in_whole_replicas(service: str, cores: int) -> None:
    assert parsed(SMALL.replace("cores = 640", service)).need().cores == cores


def test_the_data_centre_gives_what_whole_replicas_find_beside_the_base() -> None:
    room = '[[idc]]\nname = "room"\nnodes = 10\ncores_per_node = 16\nbase_cores = 50\n'
    need = parsed(SMALL + room).need()
    assert need.free_cores == 10 * 5 * 2  # 11 of 16 cores are free on each: 5 replicas of 2
    assert need.rooms == {"room": 150}
    assert need.rented_cores == 540


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lasts_min = 90", "", "event.lasts_min: missing"),
        ("lasts_min = 90", "lasts_mins = 90", "event.lasts_mins: unknown; did you mean lasts_min?"),
        ("lasts_min = 90", "lasts_min = 0", "event.lasts_min: expected `float` > 0.0"),
        ("+08:00", "", "event.at: expected `datetime` with a timezone component"),
        ('name = "eleven"', 'name = "e l"', "event: name 'e l' must be"),
        ("cores = 640", "cores = 640\nheadroom = 0.5", "service: cores are all that is wanted: leave headroom"),
        ("cores = 640", "", "service: give cores, or peak_requests_per_s with"),
        ("cores = 640", "peak_requests_per_s = 5", "service: give one of cpu_s_per_request and requests_per_s_per_"),
        ("cores = 640", "peak_requests_per_s = 1e12\ncpu_s_per_request = 1", "at most 10,000,000 can be planned"),
        ('name = "z-b"', 'name = "z-a"', "zones[1].name: 'z-a' stands twice; names must differ"),
        (
            "memory_gib = 64",
            "memory_gib = 64\nzones = ['z-c']",
            "offers[0].zones: there is no zone 'z-c'; did you mean",
        ),
        (
            "memory_gib = 64",
            "memory_gib = 64\nmarkets = ['spot']",
            "offers[0]: ecs.c7.8xlarge needs spot_price_cny_per_h",
        ),
        ("memory_gib = 64", "memory_gib = 64\nmarkets = ['idc']", "machines of the data centre are [[idc]]"),
        (
            "memory_gib = 64",
            "memory_gib = 64\nboot_s = [9, 3]",
            "give [median, 99th percentile], the smaller one first",
        ),
        ("memory_gib = 64", "memory_gib = 64\nlevel = 'much'", "offers[0].level: Invalid enum value 'much'"),
        ("[service]", "[services]", "services: unknown; did you mean service?"),
        ("[[zones]]", "[zones]", "cannot"),
    ],
)
def test_each_mistake_is_named(old: str, new: str, said: str) -> None:
    if said == "cannot":  # TOML itself
        with pytest.raises(tomllib.TOMLDecodeError):
            parsed(SMALL.replace(old, new))
        return
    assert any(said in line for line in mistakes(SMALL.replace(old, new, 1)) if line.startswith("event.toml: ")), (
        mistakes(SMALL.replace(old, new, 1))
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[quota]\non_demand = -1", "quota.on_demand: expected `int` >= 0"),
        ('[[lines]]\nname = "l"\nbandwidth_gbit = 1\nzones = ["y"]', "lines[0].zones: there is no zone 'y'"),
        (
            '[[idc]]\nname = "r"\nnodes = 1\ncores_per_node = 8\nbase_cores = 9',
            "base_cores of r are more than its 8 cores",
        ),
        ("[odds]\nzone_lost = 2", "odds.zone_lost: expected `float` <= 1.0"),
        ("[limits]\nspot_share = 0.2", "limits.spot_share: unknown; did you mean spot_share_max?"),
        ("[boot]\necs_s = [180, 60]", "boot: ecs_s is [180.0, 60.0]: give [median, 99th percentile]"),
        (SMALL[SMALL.index("[[offers]]") :], "offers[1]: z-a/ecs.c7.8xlarge/on_demand stands twice; leave one out"),
    ],
)
def test_mistakes_of_the_optional_parts_are_named_too(more: str, said: str) -> None:
    assert any(said in line for line in mistakes(f"{SMALL}\n{more}\n")), mistakes(f"{SMALL}\n{more}\n")


def test_all_mistakes_are_told_at_once() -> None:
    found = mistakes(SMALL.replace("lasts_min = 90", "lasts = 1").replace("cores = 32", "cores = 0"))
    assert len(found) == 3


def test_tables_that_every_event_needs_are_asked_for() -> None:
    assert mistakes("") == [
        "event.toml: event: missing; an event needs [event]",
        "event.toml: service: missing; an event needs [service]",
    ]
    without = SMALL[: SMALL.index("[[zones]]")] + SMALL[SMALL.index("[[offers]]") :]
    assert any("zones: missing; name the zones of the cloud" in line for line in mistakes(without))


def test_a_file_that_is_not_there_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no such file; give the path of an event's file"):
        load_event(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("= 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_event(tmp_path / "bad.toml")


CSV = """instance_type,arch,vcpu,memory_gib,cny_per_hour,zones
ecs.c6.large,amd64,2,4,0.39,a b c
ecs.c8y.large,arm64,2,4,0.27,z-b
ecs.c9.large,amd64,2,4,0.27,q
"""


def from_csv(folder: Path, rows: str, more: str = "") -> Any:
    (folder / "types.csv").write_text(rows)
    text = SMALL[: SMALL.index("[[offers]]")].replace("[event]", 'offers = "types.csv"\n[event]', 1)
    (folder / "event.toml").write_text(text + more)
    return load_event(folder / "event.toml")


def test_offers_may_be_a_csv_file_beside_the_event(tmp_path: Path) -> None:
    found = from_csv(tmp_path, CSV, "[spot]\nprice_share = 0.5\n").for_rent()
    assert {offer.key for offer in found} == {
        *(f"z-{zone}/ecs.c6.large/{market}" for zone in "ab" for market in ("on_demand", "spot")),
        *(f"z-b/ecs.c8y.large/{market}" for market in ("on_demand", "spot")),
    }
    assert {(offer.arch, offer.cores, offer.memory_mb) for offer in found} == {("amd64", 2, 4096), ("arm64", 2, 4096)}
    assert sorted({offer.price_fen_per_h for offer in found if offer.arch == "amd64"}) == pytest.approx([19.5, 39.0])
    with_stock = CSV.replace("zones\n", "zones,stock\n").replace("a b c", "a b c,7").replace("z-b\n", "z-b,\n")
    assert {offer.stock for offer in from_csv(tmp_path, with_stock.replace("q\n", "q,1\n")).for_rent()} == {7, None}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (CSV.replace("vcpu", "cpus"), "there is no column vcpu; the first line is instance_type,"),
        (CSV.replace("0.39", "cheap"), "types.csv:2: Expected `float`"),
        (CSV.replace("0.39", "-1"), "types.csv:2: Expected `float` > 0.0"),
        (CSV.replace("a b c", "x").replace("z-b", "y"), "none of its types is in the zones z-a, z-b"),
        (CSV + "ecs.t,amd64,1,1,1,a\n" * 5_000, "more than 5000 rows"),
    ],
)
def test_mistakes_in_a_csv_file_are_named_with_their_line(tmp_path: Path, rows: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_csv(tmp_path, rows)
    assert said in str(raised.value)


def test_a_csv_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "event.toml").write_text(
        SMALL[: SMALL.index("[[offers]]")].replace("[event]", 'offers = "no.csv"\n[event]', 1)
    )
    with pytest.raises(ConfigError, match=r"no\.csv: there is no such file"):
        load_event(tmp_path / "event.toml")


def test_the_cloud_may_be_asked_for_its_offers() -> None:
    event = parsed('offers = "cloud"\n' + SMALL[: SMALL.index("[[zones]]")])
    assert event.offers == "cloud"
    assert event.for_rent() == []
