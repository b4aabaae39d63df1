"""What every state of the fleet promises: PostgreSQL's and the one in memory pass the same suite."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from springtide.drivers.embedded_postgres import EmbeddedPostgres
from springtide.drivers.memory.fleet_state import MemoryFleetState
from springtide.drivers.postgres_fleet import PostgresFleetState
from springtide.drivers.system import SystemClock
from springtide.errors import Deposed, FleetStateError
from springtide.model import (
    COUNTER,
    Intent,
    Market,
    Purchase,
    ScaleOverride,
    ServiceSpec,
    ServiceWish,
    Signal,
    SignalKind,
    ZoneMode,
)
from springtide.ports import FleetState
from tests.contract.ledgers import started_server

EMPTY = """
    TRUNCATE fleet_lead, fleet_intents, fleet_memory;
    DELETE FROM fleet_wishes WHERE kind <> 'version';
    UPDATE fleet_wishes SET value = '0';
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with started_server() as server:
        yield server


@pytest.fixture(params=["postgres", "memory"])
async def state(request: pytest.FixtureRequest, server: EmbeddedPostgres) -> AsyncIterator[FleetState]:
    made: FleetState
    if request.param == "memory":
        made = MemoryFleetState(SystemClock())
    else:
        connection = await asyncpg.connect(server.dsn)
        await connection.execute(EMPTY)
        await connection.close()
        made = await PostgresFleetState.connect(server.dsn, SystemClock())
    yield made
    await made.close()


def intent(name: str, at_ms: int = 5) -> Intent:
    return Intent(name, 0, COUNTER, '{"type":"rent_nodes"}', at_ms)


def wish(revision: str = "v1", **fields: object) -> ServiceWish:
    spec = ServiceSpec("web", revision, ("serve",), cores=0.5, env={"A": "b"})
    return ServiceWish(spec, 100.0, signals=(Signal("cpu", SignalKind.CPU, 0.7),), **fields)  # type: ignore[arg-type] # passed on


async def names(state: FleetState) -> list[str]:
    return [one.intent_id for one in await state.open_intents()]


async def test_one_leads_until_its_lease_ends(state: FleetState) -> None:
    first = await state.lead("a", 300)
    assert (first.holder, first.term) == ("a", 1)
    assert await state.lead("b", 300) == first
    prolonged = await state.lead("a", 300)
    assert prolonged.term == 1
    assert prolonged.until_ms >= first.until_ms
    await asyncio.sleep(0.35)
    second = await state.lead("b", 60_000)
    assert (second.holder, second.term) == ("b", 2)
    assert await state.lead("a", 300) == second


async def test_a_lease_that_nobody_took_is_prolonged_in_its_term(state: FleetState) -> None:
    await state.lead("a", 1)
    await asyncio.sleep(0.02)
    assert (await state.lead("a", 1000)).term == 1


async def test_who_resigns_leaves_the_lead_at_once_and_ends_his_term(state: FleetState) -> None:
    await state.lead("a", 60_000)
    await state.resign("b", 1)
    await state.resign("a", 7)
    assert (await state.lead("b", 60_000)).holder == "a"
    await state.resign("a", 1)
    await state.resign("a", 1)
    second = await state.lead("a", 60_000)
    assert (second.holder, second.term) == ("a", 2)


async def test_of_many_who_want_to_lead_one_does(state: FleetState) -> None:
    found = await asyncio.gather(*(state.lead(f"h{number}", 60_000) for number in range(12)))
    assert len({(one.holder, one.term) for one in found}) == 1
    await state.resign(found[0].holder, found[0].term)
    again = await asyncio.gather(*(state.lead(f"h{number}", 60_000) for number in range(12)))
    assert {one.term for one in again} == {2}


async def test_intents_stay_open_in_their_order_until_they_are_struck(state: FleetState) -> None:
    await state.lead("a", 60_000)
    assert await state.open_intents() == []
    await state.begin(1, [intent("z"), intent("a")])
    await state.begin(1, [intent("m"), intent("z", at_ms=9)])
    await state.begin(1, [])
    assert await names(state) == ["z", "a", "m"]
    (first, *_) = await state.open_intents()
    assert first == Intent("z", 1, COUNTER, '{"type":"rent_nodes"}', 5)
    await state.end(1, ["z", "unknown"])
    await state.end(1, ["z"])
    assert await names(state) == ["a", "m"]


async def test_a_term_that_is_over_writes_nothing(state: FleetState) -> None:
    with pytest.raises(Deposed):
        await state.begin(1, [intent("early")])
    await state.lead("a", 1)
    await state.begin(1, [intent("kept")])
    await asyncio.sleep(0.02)
    await state.begin(1, [intent("late")])  # nobody else leads yet
    await state.lead("b", 60_000)
    with pytest.raises(Deposed):
        await state.begin(1, [intent("deposed")])
    with pytest.raises(Deposed):
        await state.begin(1, [])
    with pytest.raises(Deposed):
        await state.end(1, ["kept"])
    with pytest.raises(Deposed):
        await state.remember(1, "status", b"old")
    assert await names(state) == ["kept", "late"]
    assert await state.recall("status") is None
    await state.end(2, ["kept"])
    assert await names(state) == ["late"]


async def test_a_term_ends_between_its_writes_or_not_at_all(state: FleetState) -> None:
    """Whoever sees the new term sees all that the old one wrote, and nothing of it comes later."""
    await state.lead("a", 1)
    await asyncio.sleep(0.02)

    async def write(number: int) -> bool:
        try:
            await state.begin(1, [intent(f"i{number}")])
        except Deposed:
            return False
        return True

    async def depose() -> list[str]:
        await state.lead("b", 60_000)
        return await names(state)

    written, seen = await asyncio.gather(asyncio.gather(*map(write, range(20))), depose())
    assert sorted(seen) == sorted(f"i{number}" for number, done in enumerate(written) if done)
    assert sorted(await names(state)) == sorted(seen)


async def test_wishes_are_read_as_they_were_wished(state: FleetState) -> None:
    assert (await state.wishes()).version == 0
    await state.wish_service("web", wish(port=8080, drain_ms=500))
    await state.wish_mode("idc-a", ZoneMode.DRAINED)
    await state.wish_scale("web", ScaleOverride(2, 3, until_ms=9))
    found = await state.wishes()
    assert found.version == 3
    assert found.services == {"web": wish(port=8080, drain_ms=500)}
    assert found.modes == {"idc-a": ZoneMode.DRAINED}
    assert found.scales == {"web": ScaleOverride(2, 3, until_ms=9)}
    await state.wish_mode("idc-a", ZoneMode.OPEN)
    await state.wish_scale("web", None)
    await state.wish_service("web", None)
    await state.wish_service("web", None)
    found = await state.wishes()
    assert (found.services, found.modes, found.scales) == ({}, {"idc-a": ZoneMode.OPEN}, {})
    assert found.version > 3


async def test_nodes_are_cordoned_until_they_are_used_again(state: FleetState) -> None:
    assert (await state.wishes()).cordoned == frozenset()
    await state.wish_node("i-1", cordoned=True)
    await state.wish_node("i-2", cordoned=True)
    await state.wish_node("i-2", cordoned=True)
    assert (await state.wishes()).cordoned == {"i-1", "i-2"}
    await state.wish_node("i-1", cordoned=False)
    await state.wish_node("unknown", cordoned=False)
    found = await state.wishes()
    assert found.cordoned == {"i-2"}
    assert found.version == 5


async def test_an_events_purchases_are_wanted_until_they_are_withdrawn(state: FleetState) -> None:
    first = Purchase("z-a", "ecs.c7.xlarge", Market.ON_DEMAND, 3, 12, 81.5, order_ms=10, ready_ms=20)
    other = Purchase("z-b", "ecs.c7.xlarge", Market.SPOT, 1, 4, 8.15, order_ms=11, ready_ms=21)
    assert (await state.wishes()).purchases == {}
    await state.wish_purchases("eleven", [first, other])
    await state.wish_purchases("twelve", [other])
    found = await state.wishes()
    assert found.purchases == {"eleven": (first, other), "twelve": (other,)}
    assert found.version == 2
    await state.wish_purchases("eleven", [other])  # a new plan takes the place of the old one
    assert (await state.wishes()).purchases["eleven"] == (other,)
    await state.wish_purchases("eleven", None)
    await state.wish_purchases("eleven", None)
    await state.wish_purchases("twelve", [])
    found = await state.wishes()
    assert found.purchases == {"twelve": ()}
    assert found.version > 3


async def test_the_revision_a_service_had_is_its_previous_one(state: FleetState) -> None:
    await state.wish_service("web", wish("v1"))
    await state.wish_service("web", wish("v1", replicas_max=7))
    assert (await state.wishes()).services["web"].previous is None
    await state.wish_service("web", wish("v2"))
    await state.wish_service("web", wish("v2", replicas_max=9))
    found = (await state.wishes()).services["web"]
    assert found.replicas_max == 9
    assert found.spec.revision == "v2"
    assert found.previous == wish("v1").spec


async def test_wishes_at_the_same_moment_all_count(state: FleetState) -> None:
    await asyncio.gather(*(state.wish_service("web", wish(f"v{number}")) for number in range(10)))
    found = await state.wishes()
    assert found.version == 10
    assert found.services["web"].previous is not None


async def test_what_is_remembered_is_recalled(state: FleetState) -> None:
    await state.lead("a", 60_000)
    assert await state.recall("status") is None
    await state.remember(1, "status", b"\x00one")
    await state.remember(1, "status", b"two")
    await state.remember(1, "other", b"")
    assert (await state.recall("status"), await state.recall("other")) == (b"two", b"")
    with pytest.raises(FleetStateError, match="at most"):
        await state.remember(1, "status", bytes(1_000_001))
    assert await state.recall("status") == b"two"


async def test_a_state_that_does_not_answer_says_so(server: EmbeddedPostgres) -> None:
    gone = await PostgresFleetState.connect(server.dsn, SystemClock())
    await gone.close()
    with pytest.raises(FleetStateError, match="repeat the call"):
        await gone.lead("a", 1000)
    memory = MemoryFleetState(SystemClock())
    memory.failing = True
    with pytest.raises(FleetStateError, match="repeat the call"):
        await memory.wishes()
