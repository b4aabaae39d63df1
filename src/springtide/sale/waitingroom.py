"""The waiting room at a counter: `POST /v1/sales/{sale}/room` joins, `GET` of the same tells where one stands.

A join takes the buyer's token and answers with a ticket. A poll takes the ticket, as `Authorization: Bearer` or, beside
the buyer's token, as `Room-Pass`; it is answered from memory. Before the opening everybody is in the pre-queue; at the
opening that is shuffled, and whoever joins later stands behind it. Who was called has a pass, and buys with it in a
`Room-Pass` header. Who was not there when he was called, or let his pass end, joins again at the end of the line.
"""

from collections.abc import Callable
from typing import ClassVar

from springtide.model import PLACES_MAX, REPORT_MAX, CounterLoad, LineState, RoomJoin
from springtide.ports import Clock, Ids, WaitingRoom
from springtide.sale import problems, room_answers, room_joins, room_watch
from springtide.sale.admission import Rates
from springtide.sale.extension import Exchange
from springtide.sale.glance import Request
from springtide.sale.metrics import Gauges
from springtide.sale.page import Page
from springtide.sale.problems import Problem
from springtide.sale.room_answers import HEAD, waiting
from springtide.sale.room_joins import Joins
from springtide.sale.room_mirror import NOT_CALLED, PASSED, RoomMirror
from springtide.sale.room_tickets import RoomKeys, TicketError
from springtide.sale.room_watch import RoomWatch, WatchedRoom
from springtide.sale.tokens import TokenError, TokenKeys

BUYERS_INSIDE_MAX = 100_000
"""Buyers remembered to have shown a pass here; the oldest are forgotten, and their passes then count until they end."""

JOIN_RATE_MAX = 1.0
JOIN_BURST_MAX = 5
"""How often a buyer may ask to join: for ever, a second, and at once after a pause."""

_CHALLENGE = b"WWW-Authenticate: Bearer\r\n"
_ALLOW = b"Allow: GET, HEAD, POST\r\n"
_READING = (b"GET", b"HEAD")
_GOLDEN = 0.6180339887498949


class WaitingRoomDesk:
    """An `Extension` of the counter and its `RoomDoor`. The store is the caller's to close, after `close`."""

    claim: ClassVar[bytes] = b"room"
    for_buyers: ClassVar[bool] = False

    def __init__(  # noqa: PLR0913 - each is one thing of the world outside, given in by the composition root
        self,
        store: WaitingRoom,
        clock: Clock,
        ids: Ids,
        keys: RoomKeys,
        token_keys: Callable[[], TokenKeys],
        *,
        pass_ms: int,
        load: Callable[[], CounterLoad] | None = None,
    ) -> None:
        """`token_keys` gives the keys that buyer tokens are signed with now; `load` see RoomWatch."""
        self._clock = clock
        self.keys = keys
        self._token_keys = token_keys
        self._watch = RoomWatch(store, clock, pass_ms, load)
        self.joins = Joins(store, clock, ids)
        self._rooms = self._watch.rooms
        self._inside: dict[tuple[str, str], int] = {}
        self._rates = Rates(JOIN_RATE_MAX, JOIN_BURST_MAX)
        self._spread = 0.0
        self.polls = 0

    def start(self) -> None:
        """Begin to follow the rooms. Needs the loop running."""
        self._watch.start()

    async def close(self) -> None:
        """Answer what waits, report what is left."""
        await self.joins.close()
        await self._watch.close()

    # --- the extension --------------------------------------------------------------------------------------

    def handle(self, exchange: Exchange, request: Request, page: Page, buyer: str, rest: bytes) -> None:  # noqa: ARG002 - an extension's signature
        """See Extension."""
        if rest:
            exchange.refuse(problems.NOT_FOUND)
        elif not page.waiting_room:
            exchange.refuse(room_answers.NO_ROOM)
        elif request.method in _READING:
            self._poll(exchange, request, page)
        elif request.method == b"POST":
            self._join(exchange, request, page)
        else:
            exchange.refuse(problems.METHOD_NOT_ALLOWED, _ALLOW)

    def admits(self, sale: str, buyer: str, pass_: bytes, now_ms: int) -> bool:
        """See RoomDoor. `now_ms` is by our clock."""
        room = self._rooms.get(sale) or self._watch.watch(sale)
        skew_ms = room.mirror.skew_ms if room is not None else 0
        found = self.keys.read_pass(pass_, sale, buyer, (now_ms + skew_ms) / 1000) if pass_ else None
        if found is None:
            return False
        room_id, number = found
        if room is not None and room.mirror.room_id and room.mirror.room_id.decode() != room_id:
            return False
        if len(self._inside) >= BUYERS_INSIDE_MAX:
            del self._inside[next(iter(self._inside))]
        self._inside[sale, buyer] = number
        return True

    def bought(self, sale: str, buyer: str, quantity: int) -> None:
        """A buyer whose pass was shown here has got an order: his pass counts as used."""
        number = self._inside.pop((sale, buyer), None)
        room = self._rooms.get(sale)
        if number is not None and room is not None and len(room.bought) < REPORT_MAX:
            room.bought[number] = room.bought.get(number, 0) + quantity

    # --- polls ----------------------------------------------------------------------------------------------

    def _poll(self, exchange: Exchange, request: Request, page: Page) -> None:
        ticket = request.authorization
        ticket = ticket[7:] if ticket is not None and ticket.startswith(b"Bearer t1.") else request.room_pass or b""
        sale = page.sale
        try:
            buyer, room_id, place = self.keys.read_ticket(ticket, sale.encode())
        except TicketError as error:
            problem = room_answers.BAD_TICKET
            exchange.refuse(problem, _CHALLENGE, problem.body_of(f"{error} {problem.detail}"))
            return
        room = self._rooms.get(sale) or self._watch.watch(sale)
        if room is None:
            exchange.refuse(problems.OVERLOADED, exchange.retry_after())
        elif room_id == room.mirror.room_id:
            self._tell(exchange, page, room, buyer, place)
        else:
            self.when_known(exchange, room, lambda: self._tell_late(exchange, page, room, (buyer, room_id, place)))

    def _tell(self, exchange: Exchange, page: Page, room: WatchedRoom, buyer: bytes, place: int) -> None:
        mirror = room.mirror
        mirror.asked_s = exchange.started_s
        if place not in room.reported:
            room.seen(place)
        number = mirror.number(place)
        if number >= mirror.waits_from:
            # The usual case, without the calls that the others cost.
            self.polls += 1
            self._spread = spread = (self._spread + _GOLDEN) % 1.0
            exchange.reply(HEAD, *waiting(mirror, number, spread, pressed=self._watch.pressed))
            return
        answer = self.standing(page, mirror, buyer, place)
        if isinstance(answer, Problem):
            exchange.refuse(answer)
        else:
            exchange.reply(HEAD, *answer)

    def _tell_late(self, exchange: Exchange, page: Page, room: WatchedRoom, said: tuple[bytes, bytes, int]) -> None:
        """After a look at the store: the ticket may be of a room that was unknown here, or of one that is no more."""
        buyer, room_id, place = said
        if room_id == room.mirror.room_id:
            self._tell(exchange, page, room, buyer, place)
        elif self._fresh(room, exchange):
            exchange.refuse(room_answers.ROOM_GONE)
        else:
            exchange.refuse(problems.UNAVAILABLE, exchange.retry_after())

    def _fresh(self, room: WatchedRoom, exchange: Exchange) -> bool:
        return room.mirror.read_s >= exchange.started_s

    def when_known(self, exchange: Exchange, room: WatchedRoom, ready: Callable[[], None]) -> None:
        room.mirror.asked_s = exchange.started_s
        if not self._watch.when_known(room, ready):
            exchange.refuse(problems.OVERLOADED, exchange.retry_after())

    def standing(self, page: Page, mirror: RoomMirror, buyer: bytes, place: int) -> tuple[bytes, bytes] | Problem:
        """Body and header of what there is to say to the one with this place; or why it is worth nothing now."""
        self.polls += 1
        self._spread = spread = (self._spread + _GOLDEN) % 1.0
        if mirror.ended:
            return room_answers.ended(mirror.state), b""
        if mirror.drawn < 0:
            opens_in_s = (page.opens_ms - mirror.skew_ms - self._clock.now_ms()) / 1000
            return room_answers.before_opening(mirror.joined, opens_in_s, spread)
        number = mirror.number(place)
        if number >= mirror.serving:
            return waiting(mirror, number, spread, pressed=self._watch.pressed)
        until_ms = mirror.called(number, self._clock.now_ms())
        if until_ms == NOT_CALLED:
            return waiting(mirror, mirror.serving, spread, pressed=False)
        if until_ms == PASSED:
            return room_answers.TURN_PASSED
        pass_ = self.keys.pass_(buyer.decode(), page.sale, mirror.room_id.decode(), number, until_ms // 1000)
        return room_answers.admitted(pass_, until_ms // 1000 * 1000, spread)

    # --- joins ----------------------------------------------------------------------------------------------

    def _join(self, exchange: Exchange, request: Request, page: Page) -> None:
        buyer = self._buyer(exchange, request, page)
        if buyer is None:
            return
        room = self._rooms.get(page.sale) or self._watch.watch(page.sale)
        if room is None:
            exchange.refuse(problems.OVERLOADED, exchange.retry_after())
        elif room.mirror.ended or page.state == "closed":
            reason = room.mirror.state if room.mirror.ended else LineState.CLOSED
            exchange.reply(HEAD, room_answers.ended(reason))
        else:
            room.mirror.asked_s = exchange.started_s
            _Joining(self, exchange, page, room, buyer).ask()

    def _buyer(self, exchange: Exchange, request: Request, page: Page) -> str | None:
        """Who asks; None when he has been refused."""
        authorization = request.authorization
        if authorization is None or authorization[:7].lower() != b"bearer ":
            exchange.refuse(problems.UNAUTHORIZED, _CHALLENGE)
            return None
        try:
            buyer = self._token_keys().verify(authorization[7:], page.sale.encode(), self._clock.now_ms() / 1000)
        except TokenError as error:
            exchange.refuse(problems.UNAUTHORIZED, _CHALLENGE, problems.UNAUTHORIZED.body_of(str(error)))
            return None
        wait_s = self._rates.wait_s(buyer, exchange.started_s)
        if wait_s:
            exchange.refuse(problems.RATE_LIMITED, exchange.retry_after(wait_s))
            return None
        return buyer

    def gauges(self) -> Gauges:
        """Every limit beside what has been used of it, for `/metrics`."""
        watch, joins = self._watch, self.joins
        return {
            "room_polls": ("Questions about a place in a line", lambda: self.polls),
            "rooms_watched": ("Waiting rooms that are followed", lambda: len(watch.rooms)),
            "rooms_watched_max": ("Limit of them", lambda: room_watch.ROOMS_MAX),
            "room_people": ("Places given in the fullest room", lambda: _most(watch, lambda room: room.mirror.joined)),
            "room_people_max": ("Limit of them", lambda: PLACES_MAX),
            "room_joins_waiting": ("Joins that wait for a call", lambda: joins.waiting),
            "room_joins_waiting_max": ("Limit of them for each room", lambda: room_joins.WAITING_MAX),
            "room_join_calls": ("Calls of joins under way", lambda: joins.in_flight),
            "room_join_calls_max": ("Limit of them for each room", lambda: room_joins.CALLS_IN_FLIGHT_MAX),
            "room_seen": ("People seen and not reported", lambda: _most(watch, lambda room: len(room.noticed))),
            "room_seen_max": ("Limit of them for each room", lambda: REPORT_MAX),
            "room_waiters": ("Requests that wait for a look", lambda: _most(watch, lambda room: len(room.waiters))),
            "room_waiters_max": ("Limit of them for each room", lambda: room_watch.WAITERS_MAX),
            "room_inside": ("Buyers with a pass remembered here", lambda: len(self._inside)),
            "room_inside_max": ("Limit of them", lambda: BUYERS_INSIDE_MAX),
            "room_failures": ("Looks and reports that failed", lambda: watch.failures),
        }


class _Joining:
    """A join on its way: asked once, and once more when the place that the buyer had is worth nothing any more."""

    __slots__ = ("_buyer", "_desk", "_exchange", "_lost", "_page", "_room")

    def __init__(self, desk: WaitingRoomDesk, exchange: Exchange, page: Page, room: WatchedRoom, buyer: str) -> None:
        self._desk = desk
        self._exchange = exchange
        self._page = page
        self._room = room
        self._buyer = buyer
        self._lost = -1

    def ask(self) -> None:
        self._desk.joins.add(self._page.sale, RoomJoin(self._buyer, self._lost), self._page.opens_ms, self._told)

    def _told(self, room_id: str, place: int, problem: Problem | None) -> None:
        exchange = self._exchange
        if problem is not None:
            exchange.refuse(problem, exchange.retry_after())
        elif place < 0:
            exchange.refuse(room_answers.ROOM_FULL, exchange.retry_after(room_answers.POLL_S_MAX))
        elif self._room.mirror.room_id == room_id.encode():
            self._answer(room_id, place)
        else:
            self._desk.when_known(exchange, self._room, lambda: self._answer(room_id, place))

    def _answer(self, room_id: str, place: int) -> None:
        """Where he stands, as far as it is known here; the ticket is good in any case."""
        desk, mirror = self._desk, self._room.mirror
        answer: tuple[bytes, bytes] | Problem = room_answers.JOINED
        if mirror.room_id == room_id.encode():
            answer = desk.standing(self._page, mirror, self._buyer.encode(), place)
        if not isinstance(answer, Problem):
            body, extra = answer
            ticket = desk.keys.ticket(self._buyer, self._page.sale, room_id, place)
            self._exchange.reply(HEAD, room_answers.with_ticket(body, ticket), extra)
        elif self._lost < 0:
            self._lost = place
            self.ask()
        else:
            self._exchange.refuse(answer, self._exchange.retry_after())


def _most(watch: RoomWatch, count: Callable[[WatchedRoom], int]) -> int:
    return max(map(count, watch.rooms.values()), default=0)
