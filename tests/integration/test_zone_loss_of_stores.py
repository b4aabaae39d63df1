"""The zone with all of Valkey's primaries and PostgreSQL's is lost at once: no order is, and it sells again."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.zone_world import CLOCK, ZONES, How, Stream, ZoneWorld, until_all_buckets, zone_world
from springtide.drivers import netns
from springtide.drivers.valkey_wire import Wire, command

GENEROUS_S = 30.0
TAGS = [f"alone-{number}" for number in range(12)]
HOWS = [
    How.KILL,
    How.FREEZE,
    pytest.param(How.CUT, marks=pytest.mark.skipif(bool(netns.missing()), reason=netns.missing() or "possible")),
]


@pytest.mark.parametrize("how", HOWS)
def test_no_order_is_lost_with_the_zone_that_holds_all_primaries_and_it_sells_again(how: How) -> None:
    # In a thread of its own, since it may move into a private network.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, lose_and_prove(how)).result()


async def lose_and_prove(how: How) -> None:
    async with zone_world(cuttable=how is How.CUT) as world:
        stream = await world.stream()
        await world.gather_primaries()
        assert world.group.primary.name == ZONES[0]

        world.lose(0, how)
        lost_s = CLOCK.monotonic_s()
        alone = write_alone(world) if how is How.CUT else []
        sells_s = await until_all_buckets(stream.orders, lost_s, GENEROUS_S)
        pays_s = await until_all_buckets(stream.payments, lost_s, GENEROUS_S)
        # With two of three primaries back there is a majority: Valkey may elect the third by itself.
        assert 2 <= world.keeper.takeovers <= 3
        assert world.group.keeper.failovers == 1
        assert world.group.primary.name != ZONES[0]
        await stream.stop()
        print(f"{how}: sells again after {sells_s:.1f} s, payments after {pays_s:.1f} s, {len(stream.orders)} orders")
        await assert_all_is_kept(world, stream)

        # What comes back has an old state, and takes the new one.
        await world.give_back(0, how)
        assert world.group.primary.name != ZONES[0]
        await assert_all_is_kept(world, stream)
        assert [await value(world, tag) for tag in alone] == [None] * len(alone)


def write_alone(world: ZoneWorld) -> list[str]:
    """From inside the zone that is cut off: its primaries write and cannot acknowledge. What they wrote."""
    written = []
    for node in world.cluster.in_zone(0):
        with world.nodes[0].entered():
            line = socket.create_connection((node.host, node.port), 5.0)
        with line:
            for tag in TAGS:
                line.sendall(command("SET", f"{{{tag}}}:alone", "1"))
                written += [tag] if line.recv(200).startswith(b"+OK") else []
            line.sendall(command("WAITAOF", 1, 1, 200))
            assert line.recv(200) == b"*2\r\n:1\r\n:0\r\n"
    assert sorted(written) == sorted(TAGS)
    return written


async def value(world: ZoneWorld, tag: str) -> object:
    primary, _ = await world.cluster.shard_of(tag)
    wire = Wire((primary.host, primary.port), CLOCK, 2.0, lambda _: CLOCK.sleep(0))
    await wire.open()
    try:
        return await wire.call("GET", f"{{{tag}}}:alone")
    finally:
        await wire.close()


async def assert_all_is_kept(world: ZoneWorld, stream: Stream) -> None:
    proof = await world.proof(stream)
    assert proof.report.holds, proof.report
    assert proof.lost == 0, proof
