"""The load of a calibration: answers one after the other on many connections, or at a given pace."""

from collections.abc import Callable
from itertools import count

from springtide.model import Sale
from springtide.ports import Chance, Clock
from springtide.sale.tokens import key_of, sign_token
from springtide.twin.crowd.buyers import Purchase
from springtide.twin.crowd.client import Pool, Request, Response
from springtide.twin.crowd.wire import order_request, page_request

CONNECTIONS = 256
ANSWER_S = 5.0
WARM_S = 0.3
POLL_S = 0.01
_MEASURED_MAX = 1_000_000  # more answers than one run can have


class Buying:
    """Requests of a sale, whole: purchases by a new buyer each, or looks at its page."""

    def __init__(self, host: str, sale: Sale, token_master: str, prefix: str) -> None:
        """`host` is HOST:PORT; `prefix` makes the buyers unique among runs."""
        self._host = host
        self._sale = sale
        self._key = key_of(bytes.fromhex(token_master))
        self._prefix = prefix
        self._numbers = count()
        self._expires_s = sale.closes_ms // 1000

    def purchase(self) -> bytes:
        """The next buyer's."""
        buyer = f"{self._prefix}{next(self._numbers)}"
        token = sign_token(self._key, buyer, self._sale.sale, self._expires_s)
        sku = self._sale.skus[0].sku
        return order_request(self._host, self._sale.sale, Purchase(buyer, buyer, sku, 1, token=token))

    def page(self) -> bytes:
        """A look at the page."""
        return page_request(self._host, self._sale.sale)


class Load:
    """Sends and counts; `statuses` has the answers by HTTP status, 0 for none."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        """The pool is open."""
        self._pool = pool
        self._clock = clock
        self._going = False
        self._open = 0
        self.statuses: dict[int, int] = {}
        self.took_s: list[float] = []

    async def closed(self, make: Callable[[], bytes], seconds: float, on_begin: Callable[[], None]) -> float:
        """Each connection sends its next request when the last is answered; the seconds that were measured.

        Until WARM_S have passed nothing counts; then `on_begin` is called.
        """
        self._going = True
        for _ in range(CONNECTIONS):
            self._next(make)
        await self._clock.sleep(WARM_S)
        self.statuses, self.took_s = {}, []
        on_begin()
        began_s = self._clock.monotonic_s()
        await self._clock.sleep(seconds)
        self._going = False
        seconds = self._clock.monotonic_s() - began_s
        while self._open:
            await self._clock.sleep(POLL_S)
        return seconds

    async def paced(self, make: Callable[[], bytes], per_s: float, seconds: float, chance: Chance) -> list[float]:
        """Independent requests at this rate, whatever became of those before; how long each took from its due moment.

        Returns when all are answered.
        """
        self.statuses, self.took_s = {}, []
        began_s = self._clock.monotonic_s()
        due_s = began_s
        while (due_s := due_s + chance.expovariate(per_s)) < began_s + seconds:
            ahead_s = due_s - self._clock.monotonic_s()
            if ahead_s > 0:
                await self._clock.sleep(ahead_s)
            self._send(make(), due_s)
        while self._open:
            await self._clock.sleep(POLL_S)
        return self.took_s

    def _next(self, make: Callable[[], bytes]) -> None:
        self._open += 1
        began_s = self._clock.monotonic_s()

        def answered(response: Response) -> None:
            self._note(response, began_s)
            if self._going and response.status:
                self._next(make)

        self._pool.send(Request(make(), answered, _ignore))

    def _send(self, payload: bytes, due_s: float) -> None:
        self._open += 1
        self._pool.send(Request(payload, lambda response: self._note(response, due_s), _ignore))

    def _note(self, response: Response, since_s: float) -> None:
        self._open -= 1
        self.statuses[response.status] = self.statuses.get(response.status, 0) + 1
        if len(self.took_s) < _MEASURED_MAX:
            self.took_s.append(self._clock.monotonic_s() - since_s)


def _ignore(_now_s: float) -> None:
    """When a request leaves does not matter here."""
