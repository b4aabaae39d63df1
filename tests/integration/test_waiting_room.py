"""A launch with a waiting room, over HTTP, on both engines: two counters, two keepers, two thousand buyers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from springtide.decide.room import RoomPolicy
from springtide.drivers.system import SystemIds
from springtide.drivers.valkey import ValkeyInventory
from springtide.drivers.valkey_room import ValkeyRoom
from springtide.model import CounterLoad, Payment, Sale, Sku
from springtide.sale.counter import CounterServer
from springtide.sale.room_keeper import RoomKeeper
from springtide.sale.room_tickets import RoomKeys
from springtide.sale.waitingroom import WaitingRoomDesk
from tests.integration.counter_client import KEYS, ROOMY, Answer, Client, Shop, get, purchase, token
from tests.integration.order_path import CLOCK, Engines, World, empty_world, now_ms, started_engines

MASTER = b"m" * 32
PASS_MS = 2000
POLICY = RoomPolicy(pass_ms=PASS_MS, grace_ms=300, rate_default=400.0)
STOCK = 300
PEOPLE = 2000
CONNECTIONS = 16


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    with started_engines() as engines:
        yield engines


@pytest.fixture
async def world(engines: Engines) -> AsyncIterator[World]:
    async with empty_world(engines) as world:
        yield world


def a_sale(name: str, stock: int = STOCK, *, opens_in_ms: int = -1000, waiting_room: bool = True) -> Sale:
    opens_ms = now_ms() + opens_in_ms
    skus = (Sku("tea", "Tea", 500, stock),)
    return Sale(name, name, skus, opens_ms, opens_ms + 3_600_000, 60_000, waiting_room=waiting_room)


@dataclass
class Counters:
    """Some counters of one shop, each with connections that take turns."""

    shops: list[Shop] = field(default_factory=list)
    desks: list[WaitingRoomDesk] = field(default_factory=list)
    rooms: list[ValkeyRoom] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    async def ask_all(self, requests: list[bytes]) -> list[Answer]:
        """The answers, in the order of the requests; each connection sends its share one after the other."""
        answers: list[Answer | None] = [None] * len(requests)

        async def work(first: int, client: Client) -> None:
            for at in range(first, len(requests), len(self.clients)):
                answers[at] = await client.ask(requests[at])

        await asyncio.gather(*(work(first, client) for first, client in enumerate(self.clients)))
        return [answer for answer in answers if answer is not None]

    async def ask(self, request: bytes, shop: int = 0) -> Answer:
        return await self.shops[shop].ask(request)


@asynccontextmanager
async def counters(world: World, count: int = 2) -> AsyncIterator[Counters]:
    made = Counters()
    port = world.engines.valkey.port
    for number in range(count):
        room = await ValkeyRoom.connect("127.0.0.1", port, CLOCK)
        desk = WaitingRoomDesk(
            room,
            CLOCK,
            SystemIds(),
            RoomKeys(MASTER),
            lambda: KEYS,
            pass_ms=PASS_MS,
            load=lambda: made.shops[0].server.load() if made.shops else CounterLoad("r0", 0.0),
        )
        server = CounterServer(
            ROOMY, world.inventory, CLOCK, SystemIds(), KEYS, f"r{number}", rate_max=None, extensions=(desk,), door=desk
        )
        made.shops.append(Shop(server, await server.start("127.0.0.1", 0)))
        desk.start()
        made.desks.append(desk)
        made.rooms.append(room)
    made.clients = [await made.shops[number % count].connect() for number in range(CONNECTIONS)]
    try:
        yield made
    finally:
        for shop, desk, room in zip(made.shops, made.desks, made.rooms, strict=True):
            for client in shop.clients:
                await client.close()
            await shop.server.stop()
            await desk.close()
            await room.close()


@asynccontextmanager
async def keepers(world: World, count: int = 1) -> AsyncIterator[list[RoomKeeper]]:
    """Each with connections of its own, as in processes of their own."""
    port = world.engines.valkey.port
    rooms = [await ValkeyRoom.connect("127.0.0.1", port, CLOCK) for _ in range(count)]
    stores = [await ValkeyInventory.connect("127.0.0.1", port, CLOCK) for _ in range(count)]
    made = [
        RoomKeeper(store, room, world.ledger, CLOCK, SystemIds(), POLICY)
        for store, room in zip(stores, rooms, strict=True)
    ]
    tasks = [asyncio.create_task(keeper.run()) for keeper in made]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(one.close() for one in rooms), *(one.close() for one in stores))


def join(buyer: str, sale: str) -> bytes:
    lines = f"Authorization: Bearer {token(buyer, sale)}\r\nContent-Length: 0\r\n"
    return get(f"/v1/sales/{sale}/room", "POST", lines)


def poll(ticket: str, sale: str) -> bytes:
    return get(f"/v1/sales/{sale}/room", headers=f"Authorization: Bearer {ticket}\r\n")


async def standing(made: Counters, sale: str, tickets: dict[str, str]) -> dict[str, Any]:
    buyers = list(tickets)
    answers = await made.ask_all([poll(tickets[buyer], sale) for buyer in buyers])
    return {buyer: answer.json for buyer, answer in zip(buyers, answers, strict=True)}


async def until(made: Counters, sale: str, ticket: str, state: str, seconds: float = 10.0) -> Any:
    async with asyncio.timeout(seconds):
        while (answer := (await made.ask(poll(ticket, sale))).json)["state"] != state:
            await asyncio.sleep(0.05)
    return answer


async def pay_for_all(world: World, sale: Sale) -> int:
    """What recorder and webhook do, at once."""
    paid = 0
    while entries := await world.inventory.read_journal(sale.sale, 0, "test", 500):
        await world.ledger.record_entries(sale.sale, 0, entries)
        await world.inventory.acknowledge(sale.sale, 0, [entry.entry_id for entry in entries])
        for order in (one for entry in entries for one in entry.reservations):
            await world.ledger.pay(Payment(f"pay-{order.order_id}", order.order_id, sale.sale, order.buyer, 500))
            paid += 1
    return paid


@dataclass
class Rush:
    """Who was let in first, and who bought."""

    first: list[str] = field(default_factory=list)
    bought: set[str] = field(default_factory=set)


async def buy_until_nothing_is_left(made: Counters, sale: Sale, tickets: dict[str, str], idle: frozenset[str]) -> Rush:
    """All poll, and those who are let in buy, but for the idle ones."""
    rush = Rush()
    near = list(tickets)
    while len(rush.bought) < STOCK:
        told = await standing(made, sale.sale, {buyer: tickets[buyer] for buyer in near if buyer not in rush.bought})
        near = [buyer for buyer, one in told.items() if one.get("position", 0) <= 3 * STOCK]
        inside = [buyer for buyer, one in told.items() if one.get("state") == "admitted"]
        rush.first = rush.first or inside
        buying = [buyer for buyer in inside if buyer not in idle]
        answers = await made.ask_all(
            [purchase(buyer, sale=sale.sale, headers={"Room-Pass": told[buyer]["pass"]}) for buyer in buying]
        )
        # 429: the pass ended on the way. Nobody is let in for whom there is nothing.
        assert {answer.status for answer in answers} <= {201, 429}
        rush.bought |= {buyer for buyer, answer in zip(buying, answers, strict=True) if answer.status == 201}
    return rush


async def test_a_launch_from_the_pre_queue_to_the_end_of_the_line(world: World) -> None:
    sale = a_sale("launch", opens_in_ms=3000)
    await world.inventory.publish(sale)
    await world.ledger.publish(sale)
    buyers = [f"b{number}" for number in range(PEOPLE)]
    async with counters(world) as made, keepers(world, 2) as keeping:
        early, late = buyers[: PEOPLE - 100], buyers[PEOPLE - 100 :]
        joined = await made.ask_all([join(buyer, sale.sale) for buyer in early])
        assert {(answer.status, answer.json["state"]) for answer in joined} == {(200, "prequeue")}
        tickets = {buyer: str(answer.json["ticket"]) for buyer, answer in zip(early, joined, strict=True)}
        again = await made.ask(join(early[5], sale.sale), shop=1)
        assert again.json["ticket"] == tickets[early[5]]
        assert (await made.ask(purchase(early[5], sale=sale.sale))).status == 429
        assert now_ms() < sale.opens_ms, "the machine was too slow to join before the opening"
        await asyncio.sleep((sale.opens_ms - now_ms()) / 1000 + 0.3)

        for number, buyer in enumerate(late):
            answer = await made.clients[number % CONNECTIONS].ask(join(buyer, sale.sale))
            tickets[buyer] = str(answer.json["ticket"])
        rush = await buy_until_nothing_is_left(made, sale, tickets, idle=frozenset(buyers[::50]))

        # By lot: the first ones in are not those who joined first, and the late ones stand behind all others.
        assert sorted(rush.first) != sorted(buyers[: len(rush.first)])
        assert not set(late) & rush.bought
        some = [buyer for buyer in (*early[::10], *late) if buyer not in rush.bought]
        told = await standing(made, sale.sale, {buyer: tickets[buyer] for buyer in some})
        behind = [told[buyer]["position"] for buyer in late]
        assert behind == list(range(behind[0], behind[0] + len(late)))
        assert behind[0] > max(told[buyer].get("position", 0) for buyer in early[::10] if buyer in told)

        last = late[-1]
        async with asyncio.timeout(5):
            while (answer := await made.ask(poll(tickets[last], sale.sale))).json["line"] != "held":
                await asyncio.sleep(0.05)
        assert answer.json["state"] == "waiting"
        assert int(answer.headers["retry-after"]) >= 2

        assert await pay_for_all(world, sale) == STOCK
        ended = await until(made, sale.sale, tickets[last], "ended")
        assert ended == {"state": "ended", "reason": "sold_out"}
        await asyncio.sleep(0.2)
        told = await standing(made, sale.sale, {buyer: tickets[buyer] for buyer in late})
        assert Counter(one["state"] for one in told.values()) == {"ended": len(late)}
        assert (await made.ask(join("too-late", sale.sale))).json == ended
        assert sum(keeper.steps for keeper in keeping) > 0
        view = await made.rooms[0].view(sale.sale, "-")
        assert view is not None
        assert (view.drawn, view.joined) == (len(early), PEOPLE)


async def test_a_pass_and_a_ticket_are_worth_nothing_to_others(world: World) -> None:
    sale, other = a_sale("mine"), a_sale("other")
    for one in (sale, other, a_sale("plain", waiting_room=False)):
        await world.inventory.publish(one)
    async with counters(world) as made, keepers(world):
        ticket = (await made.ask(join("ann", "mine"))).json["ticket"]
        pass_ = (await until(made, "mine", ticket, "admitted"))["pass"]
        for bad in (
            purchase("bob", sale="mine", headers={"Room-Pass": pass_}),
            purchase("ann", sale="other", headers={"Room-Pass": pass_}),
            purchase("ann", sale="mine", headers={"Room-Pass": ticket}),
            purchase("ann", sale="mine", headers={"Room-Pass": pass_[:-1] + "x"}),
            purchase("ann", sale="mine"),
        ):
            answer = await made.ask(bad)
            assert (answer.status, answer.code) == (429, "not_admitted")
        assert (await made.ask(poll(ticket, "other"))).code == "bad_ticket"
        assert (await made.ask(poll(pass_, "mine"))).code == "bad_ticket"
        assert (await made.ask(poll(token("ann", "mine"), "mine"))).code == "bad_ticket"
        assert (await made.ask(get("/v1/sales/mine/room"))).code == "bad_ticket"
        assert (await made.ask(join("ann", "mine").replace(b"Bearer v1", b"Bearer v2"))).code == "unauthorized"
        assert (await made.ask(get("/v1/sales/mine/room", "POST", "Content-Length: 0\r\n"))).code == "unauthorized"
        assert (await made.ask(join("ann", "plain"))).code == "no_room"
        assert (await made.ask(get("/v1/sales/mine/room/x"))).code == "not_found"
        beside = f"Authorization: Bearer {token('ann', 'mine')}\r\nRoom-Pass: {ticket}\r\n"
        assert (await made.ask(get("/v1/sales/mine/room", headers=beside))).json["state"] == "admitted"
        good = await made.ask(purchase("ann", sale="mine", headers={"Room-Pass": pass_}), shop=1)
        assert good.status == 201


async def test_who_lets_his_pass_end_joins_again_at_the_end(world: World) -> None:
    sale = a_sale("slow", stock=1)
    await world.inventory.publish(sale)
    async with counters(world) as made, keepers(world):
        first = (await made.ask(join("ann", "slow"))).json["ticket"]
        second = (await made.ask(join("bob", "slow"))).json["ticket"]
        pass_ = (await until(made, "slow", first, "admitted"))["pass"]
        assert (await made.ask(poll(second, "slow"))).json["position"] == 1
        await until(made, "slow", second, "admitted")
        answer = await made.ask(poll(first, "slow"))
        assert (answer.status, answer.code) == (410, "turn_passed")
        assert (await made.ask(purchase("ann", sale="slow", headers={"Room-Pass": pass_}))).status == 429
        again = (await made.ask(join("ann", "slow"))).json
        assert (again["state"], again["position"]) == ("waiting", 1)
        assert again["ticket"] != first


async def test_rooms_do_not_wait_for_one_another(world: World) -> None:
    for sale in (a_sale("one"), a_sale("two"), a_sale("later", opens_in_ms=60_000)):
        await world.inventory.publish(sale)
    await world.inventory.pause("two", paused=True)
    async with counters(world) as made, keepers(world):
        tickets = {sale: (await made.ask(join("ann", sale))).json["ticket"] for sale in ("one", "two", "later")}
        await until(made, "one", tickets["one"], "admitted")
        assert (await until(made, "two", tickets["two"], "waiting"))["position"] == 1
        assert (await made.ask(poll(tickets["later"], "later"))).json["state"] == "prequeue"
        await world.inventory.pause("two", paused=False)
        await until(made, "two", tickets["two"], "admitted")


async def test_a_room_that_was_lost_is_said_to_be_gone_and_begun_anew(world: World) -> None:
    sale = a_sale("lost", opens_in_ms=60_000)
    await world.inventory.publish(sale)
    async with counters(world) as made:
        ticket = (await made.ask(join("ann", "lost"))).json["ticket"]
        wire = (await made.rooms[0]._store.primaries())[0]
        for name in ("room", "places", "beats", "calls", "passes"):
            await wire.call("DEL", f"{{lost:room}}:{name}")
        await asyncio.sleep(0.3)
        answer = await made.ask(poll(ticket, "lost"))
        assert (answer.status, answer.code) == (410, "room_gone")
        again = (await made.ask(join("ann", "lost"))).json["ticket"]
        assert again != ticket
        assert (await made.ask(poll(again, "lost"), shop=1)).json["state"] == "prequeue"


async def test_polls_are_answered_while_valkey_is_away(world: World) -> None:
    sale = a_sale("dark", stock=0)
    await world.inventory.publish(sale)
    async with counters(world) as made, keepers(world):
        tickets = [(await made.ask(join(buyer, "dark"))).json["ticket"] for buyer in ("ann", "bob")]
        await until(made, "dark", tickets[1], "waiting")
        for room in made.rooms:
            await room.close()
        answer = await made.ask(poll(tickets[1], "dark"))
        assert (answer.status, answer.json["position"]) == (200, 2)
        assert (await made.ask(join("cid", "dark"))).status == 503
