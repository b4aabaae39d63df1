"""Good buyers, each on his own: they buy, ask again with the same key until they know, and pay, cancel or forget.

Closed loop: `buyers` of them at a time. Every attempt is handed to `log` when it ends, and the log is what the ledger
is held against, so nothing is smoothed: an answer that never came is an attempt with status 0.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from springtide.model import Payment, Sale, Sku
from springtide.ports import Chance, Clock, Ids
from springtide.sale.tokens import sign_token
from springtide.sale.webhook import SIGNATURE_HEADER, sign
from springtide.twin.crowd.buyers import Purchase
from springtide.twin.crowd.client import Pool, Request, Response
from springtide.twin.crowd.wire import order_request, payment_request
from springtide.twin.torture.checker import ACKNOWLEDGED
from springtide.twin.torture.history import Action, Attempt, Record

ANSWER_S = 4.0
"""A counter has answered by then, whatever happened to it and to the inventory: its own limit is under 3 s."""

ASK_AGAIN_S = (0.02, 0.1, 0.2, 0.4)
"""Waits before asking again; the last one repeats."""

GIVE_UP_S = 40.0
"""A buyer who still knows nothing gives up. An outage is over by then, several at once included."""

THINK_S = 0.09
AFTERLIVES_MAX = 2000
"""Orders whose buyers are still doing something with them; beyond, they are forgotten, and expire."""

CONNECTIONS_MAX = 64
BACKOFFICE_MAX = 12
"""Calls to the back office at a time; the others wait for their turn, so that an outage is not followed by a storm."""

TOKEN_S = 86_400
SCARCE_SHARE = 0.25
_NOT_FOUND = 404
_UNDECIDED = frozenset({0, 429, 500, 502, 503, 504})

Address = tuple[str, int]


class _Answer(msgspec.Struct):
    code: str = ""
    order_id: str = ""
    status: str | int = ""
    state: str = ""
    outcome: str = ""


_decode_answer = msgspec.json.Decoder(_Answer).decode


class Where(msgspec.Struct, frozen=True):
    """What is for sale, and how to reach those who sell it. `scarce` SKUs are those that most buyers find sold out.

    The functions tell the addresses of now: a process that was started again may have another.
    """

    sale: Sale
    scarce: frozenset[str]
    counters: Callable[[], Mapping[str, Address]]
    backoffice: Callable[[], Address | None]
    token_key: bytes
    webhook_secret: bytes


class Client:
    """Buyers of one sale."""

    def __init__(self, where: Where, clock: Clock, ids: Ids, chance: Chance, log: Callable[[Record], None]) -> None:
        """Nothing is sent before `run`."""
        self.sale = where.sale
        self.scarce = [sku for sku in self.sale.skus if sku.sku in where.scarce]
        self._plenty = [sku for sku in self.sale.skus if sku.sku not in where.scarce]
        self._where = where
        self._clock = clock
        self._prefix = ids.new("b")
        self._chance = chance
        self.log = log
        self._pools: dict[str, tuple[Address, Pool]] = {}
        self._afterlives: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(BACKOFFICE_MAX)
        self._buyers = 0
        self.stopping = False
        self.asking: Counter[str] = Counter()
        """By counter, purchases sent and not answered; under `backoffice`, payments and cancellations."""

    @property
    def purchases_asking(self) -> int:
        """Purchases sent and not answered, at all counters."""
        return sum(count for name, count in self.asking.items() if name != "backoffice")

    async def run(self, buyers: int) -> None:
        """Buy until `stop`; returns when all that was begun has been answered or given up."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(buyers):
                tasks.create_task(self._buy_on())
        while self._afterlives:
            await asyncio.wait(self._afterlives)

    def stop(self) -> None:
        """Begin nothing new."""
        self.stopping = True

    async def close(self) -> None:
        """Cut the connections."""
        for task in list(self._afterlives):
            task.cancel()
        await asyncio.gather(*self._afterlives, return_exceptions=True)
        for _, pool in self._pools.values():
            await pool.close()

    async def _buy_on(self) -> None:
        while not self.stopping:
            purchase = self._next_purchase()
            answer = await self._ask_until_known(purchase)
            if answer.status in ACKNOWLEDGED and len(self._afterlives) < AFTERLIVES_MAX:
                task = asyncio.create_task(self._after(purchase, answer.order_id))
                self._afterlives.add(task)
                task.add_done_callback(self._afterlives.discard)
            await self._clock.sleep(self._chance.expovariate(1 / THINK_S))

    def _next_purchase(self) -> Purchase:
        self._buyers += 1
        buyer = f"{self._prefix}-{self._buyers}"
        skus = self.scarce if self.scarce and self._chance.random() < SCARCE_SHARE else self._plenty
        sku = skus[int(self._chance.random() * len(skus))]
        quantity = 1 + int(self._chance.random() * sku.per_buyer_max)
        return self._purchase(buyer, "k1", sku.sku, quantity)

    def _purchase(self, buyer: str, key: str, sku: str, quantity: int) -> Purchase:
        expires_s = self._clock.now_ms() // 1000 + TOKEN_S
        token = sign_token(self._where.token_key, buyer, self.sale.sale, expires_s)
        return Purchase(buyer=buyer, key=key, sku=sku, quantity=quantity, token=token)

    async def _ask_until_known(self, purchase: Purchase) -> Attempt:
        """Repeat with the same key, at any counter, while the answer leaves open whether there is an order."""
        until_s = self._clock.monotonic_s() + GIVE_UP_S
        tries = 0
        while True:
            attempt = await self._ask(purchase)
            if attempt.status not in _UNDECIDED or self._clock.monotonic_s() > until_s:
                return attempt
            await self._clock.sleep(ASK_AGAIN_S[min(tries, len(ASK_AGAIN_S) - 1)])
            tries += 1

    async def _ask(self, purchase: Purchase) -> Attempt:
        counters = self._where.counters()
        name = sorted(counters)[int(self._chance.random() * len(counters))] if counters else ""
        sent_ms = self._clock.now_ms()
        response = Response(0, failure="connection")
        if name:
            host, port = counters[name]
            payload = order_request(f"{host}:{port}", self.sale.sale, purchase)
            response = await self._send(name, counters[name], payload)
        answer = _read(response)
        attempt = Attempt(
            buyer=purchase.buyer,
            key=purchase.key,
            sku=purchase.sku,
            quantity=purchase.quantity,
            sent_ms=sent_ms,
            done_ms=self._clock.now_ms(),
            counter=name,
            status=response.status if answer is not None else 0,
            code=answer.code if answer is not None else "",
            order_id=answer.order_id if answer is not None else "",
            state=str(answer.status) if answer is not None and response.status in ACKNOWLEDGED else "",
        )
        self.log(attempt)
        return attempt

    async def _send(self, name: str, address: Address, payload: bytes) -> Response:
        pool = await self._pool(name, address)
        answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

        def answer(response: Response) -> None:
            if not answered.done():
                answered.set_result(response)

        self.asking[name] += 1
        try:
            pool.send(Request(payload, answer, lambda _: None))
            return await answered
        finally:
            self.asking[name] -= 1

    async def _pool(self, name: str, address: Address) -> Pool:
        known = self._pools.get(name)
        if known is not None and known[0] == address:
            return known[1]
        pool = Pool(f"http://{address[0]}:{address[1]}", self._clock, ANSWER_S, 0, CONNECTIONS_MAX)
        self._pools[name] = (address, pool)
        if known is not None:
            await known[1].close()
        await pool.open()
        return pool

    # --- what becomes of an order ---------------------------------------------------------------------------

    async def _after(self, purchase: Purchase, order_id: str) -> None:
        """One of the things that people do with an order; half of them pay."""
        draw = self._chance.random()
        hold_s = self.sale.hold_ms / 1000
        await self._clock.sleep(self._chance.uniform(0.0, hold_s / 2))
        if draw < 0.1:  # noqa: PLR2004 - the shares of this table
            await self._ask_until_known(purchase)
        elif draw < 0.15:  # noqa: PLR2004 - as above
            other = purchase.quantity % self._sku(purchase.sku).per_buyer_max + 1
            await self._ask_until_known(self._purchase(purchase.buyer, purchase.key, purchase.sku, other))
        elif draw < 0.25:  # noqa: PLR2004 - as above
            more = self._purchase(purchase.buyer, "k2", purchase.sku, self._sku(purchase.sku).per_buyer_max)
            await self._ask_until_known(more)
        elif draw < 0.75:  # noqa: PLR2004 - as above
            # Some are late on purpose: their payment meets an order that has expired, or is about to.
            await self._clock.sleep(self._chance.uniform(0.0, 1.5 * hold_s))
            await self._pay(purchase, order_id)
        elif draw < 0.85:  # noqa: PLR2004 - as above
            await self._cancel(purchase, order_id)

    async def _pay(self, purchase: Purchase, order_id: str) -> None:
        amount = self._sku(purchase.sku).price_fen * purchase.quantity
        payment = Payment(f"p-{order_id}", order_id, self.sale.sale, purchase.buyer, amount)

        def payload(host: str) -> bytes:
            return payment_request(host, payment, self._where.webhook_secret)

        await self._say_until_known("pay", order_id, payload)

    async def _cancel(self, purchase: Purchase, order_id: str) -> None:
        said = {"order_id": order_id, "sale": self.sale.sale, "buyer": purchase.buyer}
        body = msgspec.json.encode(said)
        signature = sign(self._where.webhook_secret, body)

        def payload(host: str) -> bytes:
            head = (
                f"POST /v1/orders/{order_id}/cancel HTTP/1.1\r\nHost: {host}\r\n{SIGNATURE_HEADER}: {signature}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            return head.encode() + body

        await self._say_until_known("cancel", order_id, payload)

    async def _say_until_known(self, what: str, order_id: str, payload: Callable[[str], bytes]) -> None:
        sent_ms = self._clock.now_ms()
        response = await self.tell_backoffice(payload)
        answer = _read(response) or _Answer()
        outcome = answer.outcome or answer.state
        self.log(Action(what, order_id, sent_ms, self._clock.now_ms(), response.status, outcome))

    async def tell_backoffice(self, payload: Callable[[str], bytes]) -> Response:
        """Say it until it is answered, or GIVE_UP_S are over; `payload` makes the request for a host."""
        until_s = self._clock.monotonic_s() + GIVE_UP_S
        response = Response(0, failure="connection")
        while self._clock.monotonic_s() < until_s:
            address = self._where.backoffice()
            if address is not None:
                async with self._turns:
                    response = await self._send("backoffice", address, payload(f"{address[0]}:{address[1]}"))
            if response.status not in _UNDECIDED:
                break
            await self._clock.sleep(ASK_AGAIN_S[-1])
        return response

    def _sku(self, name: str) -> Sku:
        return next(sku for sku in self.sale.skus if sku.sku == name)


def _read(response: Response) -> _Answer | None:
    """None when nothing came back, or nothing that can be read."""
    if response.status == 0:
        return None
    try:
        return _decode_answer(response.body)
    except msgspec.DecodeError:
        return None
