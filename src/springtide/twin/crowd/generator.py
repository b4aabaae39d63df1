"""The open-loop generator: requests leave when the schedule says so, whatever became of those before.

Every latency runs from the scheduled moment, so that a slow answer cannot hide the requests that wait
behind it ("coordinated omission", G. Tene). First attempts follow the demand; what people repeat comes on
top.
"""

import asyncio
import gc
import itertools
import os
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TextIO

import msgspec

from springtide.model import Payment
from springtide.ports import Chance, Clock, Ids
from springtide.sale.tokens import TokenKeys
from springtide.twin.crowd import wire
from springtide.twin.crowd.buyers import Again, Answer, Buyers, Outcome, Pay, Purchase
from springtide.twin.crowd.client import Pool, Request, Response
from springtide.twin.crowd.demand import Demand, load_demand
from springtide.twin.crowd.figures import Figures
from springtide.twin.crowd.schedule import arrivals
from springtide.twin.crowd.spec import (
    ACKNOWLEDGEMENTS,
    SECONDS,
    SUMMARY,
    Acknowledgement,
    CrowdSpec,
    CrowdSummary,
    OrderAcknowledged,
    PaymentAcknowledged,
)

CONNECTIONS_GROWTH = 8
"""The pool may grow to this many times `connections`."""
PAYMENT_CONNECTIONS = 32
"""The payment provider reports over at most this many connections at a time."""
PAYMENT_ASKS_MAX = 20
PAYMENT_BACKOFF_S = 0.5
"""A payment that got no answer is reported again this long after, with the same payment id."""
PEOPLE_WAITING_MAX = 200_000
"""People with something still to do; beyond it they give up, which is counted."""
SETTLE_S_MAX = 40.0
"""How long after the last second of the demand people may still finish what they began."""
TOKEN_VALID_S = 86_400
FILES_OPEN_MAX = 65_536
GC_THRESHOLD = 100_000
"""Allocations between two runs of the cycle collector: nothing here makes cycles in bulk."""


class Crowd:
    """One run. All callbacks run in one event loop."""

    def __init__(self, spec: CrowdSpec, demand: Demand, clock: Clock, chance: Chance, ids: Ids) -> None:
        """`chance` drives the buyers; the schedule has its own stream."""
        self._spec = spec
        self._demand = demand
        self._clock = clock
        self._chance = chance
        self._run = ids.new("c")[:9]
        self._sale = spec.sale.sale
        self._buyers = Buyers(spec.settings, spec.sale, chance, self._run)
        self._tokens = TokenKeys((bytes.fromhex(spec.token_key_hex),))
        self._secret = bytes.fromhex(spec.webhook_secret_hex)
        self._prices = {sku.sku: sku.price_fen for sku in spec.sale.skus}
        self._payment_ids = itertools.count()
        self._busy = 0
        self._in_doubt: set[str] = set()
        self._closing = False
        self._encode = msgspec.json.Encoder().encode
        self.figures = Figures(demand)
        seconds, connections = spec.settings.answer_timeout_s, spec.settings.connections
        self._counter = Pool(spec.url, clock, seconds, connections, CONNECTIONS_GROWTH * connections)
        self._backoffice = Pool(spec.backoffice_url, clock, seconds, 1, PAYMENT_CONNECTIONS)
        self._counter_host = f"{self._counter.host}:{self._counter.port}"
        self._backoffice_host = f"{self._backoffice.host}:{self._backoffice.port}"
        self._page = wire.page_request(self._counter_host, self._sale)
        self._start_s = 0.0
        self._out: TextIO | None = None

    async def run(self, schedule: Chance) -> None:
        """Open the connections, follow the schedule, let people finish. Writes two files as it goes."""
        out = Path(self._spec.out)
        with (out / ACKNOWLEDGEMENTS).open("w") as self._out, (out / SECONDS).open("w") as seconds:
            await asyncio.gather(self._counter.open(), self._backoffice.open())
            self._start_s = self._clock.monotonic_s() + (self._spec.start_ms - self._clock.now_ms()) / 1000
            writer = asyncio.create_task(self._write_seconds(seconds))
            try:
                await self._follow(schedule)
                await self._settle()
            finally:
                self._closing = True
                writer.cancel()
                await asyncio.gather(self._counter.close(), self._backoffice.close())
                self.figures.unanswered += len(self._in_doubt)
                self._write_second(seconds, max(len(self._demand.rates), int(self._elapsed_s())))

    def _elapsed_s(self) -> float:
        return self._clock.monotonic_s() - self._start_s

    async def _follow(self, schedule: Chance) -> None:
        for _, times in arrivals(self._demand, schedule):
            for due_s in times:
                ahead_s = due_s - self._elapsed_s()
                if ahead_s > 0:
                    await self._clock.sleep(ahead_s)
                self._arrive(due_s)
        await self._clock.sleep(max(0.0, len(self._demand.rates) - self._elapsed_s()))

    async def _settle(self) -> None:
        until_s = len(self._demand.rates) + SETTLE_S_MAX
        while self._busy and self._elapsed_s() < until_s:
            await self._clock.sleep(0.05)

    async def _write_seconds(self, file: TextIO) -> None:
        for second in itertools.count():
            await self._clock.sleep(second + 1 - self._elapsed_s())
            self._write_second(file, second)

    def _write_second(self, file: TextIO, second: int) -> None:
        file.write(self._encode(self.figures.close_second(second)).decode() + "\n")
        file.flush()
        if self._out is not None:
            self._out.flush()

    def _acknowledge(self, line: Acknowledgement) -> None:
        if self._out is not None and not self._out.closed:
            self._out.write(self._encode(line).decode() + "\n")

    # --- people at the counter ---

    def _until_open_s(self) -> float:
        return (self._spec.sale.opens_ms - self._clock.now_ms()) / 1000

    def _arrive(self, due_s: float) -> None:
        purchase = self._buyers.arrive(is_open=self._until_open_s() <= 0)
        if purchase is None:
            self._send(self._page, due_s, partial(self._page_came, due_s), first=True)
        else:
            self._ask(purchase, due_s, first=True)

    def _send(self, payload: bytes, due_s: float, on_answer: Callable[[Response], None], *, first: bool) -> None:
        self._busy += 1
        self.figures.begun(int(due_s), self._elapsed_s() - due_s, first=first)
        self._counter.send(Request(payload, on_answer, partial(self._written, due_s)))

    def _written(self, due_s: float, now_s: float) -> None:
        self.figures.written(now_s - self._start_s - due_s)

    def _page_came(self, due_s: float, response: Response) -> None:
        self._busy -= 1
        if response.status == 0:
            code = response.failure
        else:
            code = "page" if response.status == 200 else wire.problem_code(response.body)  # noqa: PLR2004 - HTTP's OK
        self.figures.answered(response.status, code, self._elapsed_s() - due_s, int(due_s))

    def _ask(self, purchase: Purchase, due_s: float, *, first: bool) -> None:
        if not purchase.token:
            expires_s = self._spec.start_ms // 1000 + TOKEN_VALID_S
            purchase.token = self._tokens.sign(purchase.buyer, self._sale, expires_s)
        payload = wire.order_request(self._counter_host, self._sale, purchase)
        first_second = int(due_s) if first else -1
        self._send(payload, due_s, partial(self._order_came, purchase, due_s, first_second), first=first)

    def _order_came(self, purchase: Purchase, due_s: float, first_second: int, response: Response) -> None:
        self._busy -= 1
        answer = wire.read_answer(response)
        self.figures.answered(answer.status, answer.code, self._elapsed_s() - due_s, first_second)
        order_before, conflicting_before = purchase.order_id, purchase.conflicting
        steps = self._buyers.next_steps(purchase, answer, self._until_open_s())
        if answer.outcome is Outcome.HELD:
            self.figures.acknowledged += not order_before
            self.figures.conflicting += purchase.conflicting and not conflicting_before
            self._note_order(purchase, answer)
        goes_on = False
        for step in steps:
            match step:
                case Again():
                    goes_on = self._later(step.after_s, partial(self._ask_now, step.purchase)) or goes_on
                case Pay():
                    self._later(step.after_s, partial(self._pay, step.purchase))
        self._note_doubt(purchase, goes_on=goes_on)

    def _note_order(self, purchase: Purchase, answer: Answer) -> None:
        self._acknowledge(
            OrderAcknowledged(
                order_id=answer.order_id,
                buyer=purchase.buyer,
                key=purchase.key,
                sku=purchase.sku,
                quantity=purchase.quantity,
                pay_by_ms=answer.pay_by_ms,
                at_ms=self._clock.now_ms(),
            )
        )

    def _note_doubt(self, purchase: Purchase, *, goes_on: bool) -> None:
        """Count how a purchase with an unknown outcome ended, once, when it ends."""
        if not purchase.was_in_doubt:
            return
        if goes_on and purchase.in_doubt:
            self._in_doubt.add(purchase.key)
            return
        self.figures.unanswered += purchase.in_doubt
        self.figures.resolved += not purchase.in_doubt
        self._in_doubt.discard(purchase.key)
        purchase.was_in_doubt = False

    def _ask_now(self, purchase: Purchase, due_s: float) -> None:
        self._ask(purchase, due_s, first=False)

    def _later(self, after_s: float, what: Callable[[float], None]) -> bool:
        """Do something after a while; False when too many people wait (this one gives up), or at the end."""
        if self._closing:
            return False
        if self._busy >= PEOPLE_WAITING_MAX:
            self.figures.gave_up += 1
            return False
        self._busy += 1
        due_s = self._elapsed_s() + after_s
        self._clock.call_later(after_s, partial(self._do, what, due_s))
        return True

    def _do(self, what: Callable[[float], None], due_s: float) -> None:
        self._busy -= 1
        if not self._closing:
            what(due_s)

    # --- payments ---

    def _pay(self, purchase: Purchase, _due_s: float) -> None:
        payment = Payment(
            payment_id=f"{self._run}-p{next(self._payment_ids)}",
            order_id=purchase.order_id,
            sale=self._sale,
            buyer=purchase.buyer,
            amount_fen=self._prices[purchase.sku] * purchase.quantity,
        )
        self.figures.payments += 1
        self._report_payment(payment, wire.payment_request(self._backoffice_host, payment, self._secret), 1, 0.0)

    def _report_payment(self, payment: Payment, payload: bytes, ask: int, _due_s: float) -> None:
        self._busy += 1
        self._backoffice.send(Request(payload, partial(self._payment_came, payment, payload, ask), _ignore))

    def _payment_came(self, payment: Payment, payload: bytes, ask: int, response: Response) -> None:
        self._busy -= 1
        if response.status in {0, 429} or response.status >= 500:  # noqa: PLR2004 - HTTP's "come back"
            again = partial(self._report_payment, payment, payload, ask + 1)
            wait_s = max(response.retry_after_s, PAYMENT_BACKOFF_S)
            if ask >= PAYMENT_ASKS_MAX or not self._later(wait_s, again):
                self.figures.payments_unanswered += 1
            return
        if response.status >= 300:  # noqa: PLR2004 - HTTP's success ends there
            self.figures.payments_refused += 1
            return
        self.figures.payments_acknowledged += 1
        self._acknowledge(
            PaymentAcknowledged(
                payment_id=payment.payment_id,
                order_id=payment.order_id,
                amount_fen=payment.amount_fen,
                outcome=wire.read_payment_outcome(response),
                at_ms=self._clock.now_ms(),
            )
        )


def _ignore(_now_s: float) -> None:
    """Payments have no schedule to be late against."""


async def run_crowd(spec: CrowdSpec, clock: Clock, ids: Ids, chance: Callable[[int], Chance]) -> CrowdSummary:
    """One run from start to end; writes acknowledgements, seconds and the summary into `spec.out`.

    `chance` gives the stream of a seed. Raises ConfigError for a demand or a URL that cannot be used. It is
    meant for a process of its own: it raises the limit of open files and defers the cycle collector.
    """
    demand = load_demand(Path(spec.demand))
    _make_folder(Path(spec.out))
    crowd = Crowd(spec, demand, clock, chance(spec.settings.seed), ids)
    _prepare_process()
    await crowd.run(chance(spec.settings.seed + 1))
    times = os.times()
    summary = crowd.figures.summary(times.user + times.system)
    (Path(spec.out) / SUMMARY).write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2))
    return summary


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def _prepare_process() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_OPEN_MAX if hard == resource.RLIM_INFINITY else min(FILES_OPEN_MAX, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 50, 50)
