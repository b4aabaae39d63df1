"""Waiting-room polls for each CPU second of the counter, beside HAProxy's constant: a new signed ticket each request.

A sale with a waiting room is open, everybody has joined the line and the lot is drawn, and nobody is called while it is
measured: each poll is by somebody else in the line, who is told where he stands.
"""

import asyncio
import secrets
from collections.abc import Iterator

import msgspec

from bench import counter, engines, processes
from bench.engines import CLOCK, SALE
from bench.load import Outcome
from bench.rows import Row, Skipped, compared, median_row
from springtide.drivers.valkey_room import ValkeyRoom
from springtide.model import JOINS_MAX, RoomJoin

FLOOR_HAPROXY = 0.55
PEOPLE = 200_000
SETTLE_S = 0.5


def measure(runs: int) -> tuple[list[Row], list[Skipped]]:
    """The rows of this bench."""
    haproxy, skipped = counter.constant_or_skipped()
    outcomes: list[Outcome] = []
    constants: list[Outcome] = []
    for _ in range(runs):
        outcomes.append(asyncio.run(_one_run()))
        if haproxy:
            constants.append(counter.constant())
    polls = median_row("waiting-room polls", "requests per CPU second", [run.per_cpu_s for run in outcomes])
    rows = [polls]
    if constants:
        reference = median_row("HAProxy, a constant", "requests per CPU second", [run.per_cpu_s for run in constants])
        rows = [compared(polls, reference, FLOOR_HAPROXY), reference]
    rows += [
        median_row("waiting-room polls: rate", "requests/s", [run.answered / run.seconds for run in outcomes]),
        median_row("waiting-room polls: p99", "ms", [run.p99_ms for run in outcomes]),
    ]
    return rows, skipped


async def _one_run() -> Outcome:
    server_cpu, other_cpu = processes.cores()
    token_key = secrets.token_hex(32)
    buyers = f"b{secrets.token_hex(3)}"
    async with engines.store(other_cpu, waiting_room=True) as store:
        room_id = await _join_all(store.port, buyers)
        with processes.counter(store.port, token_key, server_cpu) as (pid, port):
            await asyncio.sleep(SETTLE_S)
            job = counter.purchases(port, token_key, PEOPLE, "200", (pid, store.pid))
            job = msgspec.structs.replace(job, buyers=buyers, room_id=room_id)
            outcome = await asyncio.to_thread(processes.load, job)
    if outcome.other:
        raise RuntimeError(f"{outcome.other} answers were not 200; the first: {outcome.first_other}")
    return outcome


async def _join_all(port: int, buyers: str) -> str:
    """Give everybody a place, that of his number; the room."""
    rooms = await ValkeyRoom.connect("127.0.0.1", port, CLOCK)
    room_id, next_place = "", 0
    for batch in _batches(buyers):
        given = await rooms.join(SALE, batch, CLOCK.now_ms() - 1000, "bench")
        if list(given.places) != list(range(next_place, next_place + len(batch))):
            raise RuntimeError("the places of a new room should be given in order")
        room_id, next_place = given.room_id, next_place + len(batch)
    await rooms.close()
    return room_id


def _batches(buyers: str) -> Iterator[list[RoomJoin]]:
    for at in range(0, PEOPLE, JOINS_MAX):
        yield [RoomJoin(f"{buyers}-{number}") for number in range(at, min(at + JOINS_MAX, PEOPLE))]
