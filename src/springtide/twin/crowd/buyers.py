"""What a person at a sale does next. Pure: chance, settings and answers in, the next steps out."""

import itertools
from collections import deque
from enum import StrEnum

import msgspec

from springtide.config import CrowdSettings
from springtide.model import OrderState, Sale, Sku
from springtide.ports import Chance

EARLY_SHARE = 0.05
"""Before the opening, this share of people presses "buy" all the same."""
RETURNING_SHARE = 0.02
"""This share of purchases comes from a buyer who holds an order and asks for the most one may have."""
SEVERAL_SHARE = 0.15
"""This share of buyers asks for a random quantity up to the limit of the SKU; the others for one unit."""
DOUBLE_PRESS_SHARE = 0.01
"""This share of buyers presses again although the order was confirmed: the same request with the same key."""
CUSTOMERS_MAX = 1000
"""How many of the latest customers may come back."""
OPENING_SPREAD_S = 1.0
"""People who were too early try again within this time after the opening."""
ASKS_MAX = 20
"""A purchase with an unknown outcome is asked for until it has an answer, at most this often in all."""
BACKOFF_S = (0.0, 0.1, 0.2, 0.4, 0.8, 1.0)
"""Waits before a purchase with an unknown outcome is asked for again; the last one repeats."""


class Outcome(StrEnum):
    """What an attempt came to, as far as the person's next step depends on it."""

    HELD = "held"
    ENDED = "ended"
    SOLD_OUT = "sold_out"
    NOT_OPEN = "not_open"
    LATER = "later"
    UNKNOWN = "unknown"


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What the client made of a response, or of its absence (`status` 0)."""

    outcome: Outcome
    status: int = 0
    code: str = ""
    retry_after_s: float = 0.0
    order_id: str = ""
    pay_by_ms: int = 0


class Purchase(msgspec.Struct):
    """One person's purchase of one SKU: all attempts carry the same key.

    `in_doubt`: an attempt may have taken effect and no truthful answer has come since.
    """

    buyer: str
    key: str
    sku: str
    quantity: int
    changes: int = 0
    asks: int = 0
    delays: int = 0
    in_doubt: bool = False
    was_in_doubt: bool = False
    order_id: str = ""
    conflicting: bool = False
    token: str = ""


class Again(msgspec.Struct, frozen=True, gc=False):
    """Send the purchase after this many seconds; a new purchase has a new key."""

    after_s: float
    purchase: Purchase


class Pay(msgspec.Struct, frozen=True, gc=False):
    """Pay the order after this many seconds."""

    after_s: float
    purchase: Purchase


Step = Again | Pay


class Buyers:
    """All people of one run. `run` makes their names and keys unique among runs."""

    def __init__(self, settings: CrowdSettings, sale: Sale, chance: Chance, run: str) -> None:
        """Prepare the Zipf law: the SKU at rank r of the sale is chosen in proportion to r^-zipf_exponent."""
        self._settings = settings
        self._chance = chance
        self._run = run
        self._serial = itertools.count()
        self._skus = sale.skus
        weights = [rank**-settings.zipf_exponent for rank in range(1, len(sale.skus) + 1)]
        total = sum(weights)
        self._bounds = [bound / total for bound in itertools.accumulate(weights)]
        self._customers: deque[tuple[str, Sku]] = deque(maxlen=CUSTOMERS_MAX)
        self._by_name = {sku.sku: sku for sku in sale.skus}

    def arrive(self, *, is_open: bool) -> Purchase | None:
        """Somebody comes: a purchase, or None for a look at the page."""
        looks = self._settings.page_share if is_open else 1 - EARLY_SHARE
        if self._chance.random() < looks:
            return None
        if self._customers and self._chance.random() < RETURNING_SHARE:
            buyer, sku = self._customers[int(self._chance.random() * len(self._customers))]
            return self._purchase(buyer, sku, sku.per_buyer_max)
        sku = self._choose()
        return self._purchase(f"{self._run}-b{next(self._serial)}", sku, self._quantity(sku))

    def next_steps(self, purchase: Purchase, answer: Answer, until_open_s: float) -> tuple[Step, ...]:
        """What the person does after an answer; nothing means that they leave. Updates the purchase.

        `until_open_s` is the time to the opening, negative afterwards.
        """
        purchase.asks += 1
        self._note_doubt(purchase, answer)
        match answer.outcome:
            case Outcome.HELD:
                return self._after_order(purchase, answer)
            case Outcome.SOLD_OUT:
                return self._after_sold_out(purchase)
            case Outcome.NOT_OPEN:
                return self._at_opening(purchase, until_open_s)
            case Outcome.LATER:
                return self._later(purchase, answer)
            case Outcome.UNKNOWN:
                return self._ask_again(purchase)
            case Outcome.ENDED:
                return ()

    def _note_doubt(self, purchase: Purchase, answer: Answer) -> None:
        """Any answer ends a doubt except "later", which says nothing of an earlier attempt."""
        if answer.outcome is Outcome.UNKNOWN:
            purchase.in_doubt = purchase.was_in_doubt = True
        elif answer.outcome is not Outcome.LATER:
            purchase.in_doubt = False

    def _after_order(self, purchase: Purchase, answer: Answer) -> tuple[Step, ...]:
        if purchase.order_id:
            purchase.conflicting = purchase.conflicting or purchase.order_id != answer.order_id
            return ()
        purchase.order_id = answer.order_id
        if answer.code != OrderState.RESERVED:
            return ()
        self._customers.append((purchase.buyer, self._by_name[purchase.sku]))
        steps: list[Step] = []
        if self._chance.random() < self._settings.pay_share:
            steps.append(Pay(self._settings.pay_after_s * self._chance.uniform(0.5, 1.8), purchase))
        if self._chance.random() < DOUBLE_PRESS_SHARE:
            steps.append(Again(self._chance.uniform(0.1, 0.5), purchase))
        return tuple(steps)

    def _after_sold_out(self, purchase: Purchase) -> tuple[Step, ...]:
        if purchase.changes >= self._settings.retries_max or self._chance.random() >= self._settings.retry_share:
            return ()
        sku = self._choose()
        again = self._purchase(purchase.buyer, sku, self._quantity(sku))
        again.changes = purchase.changes + 1
        again.token = purchase.token
        return (Again(self._chance.uniform(0.7, 2.0), again),)

    def _at_opening(self, purchase: Purchase, until_open_s: float) -> tuple[Step, ...]:
        purchase.delays += 1
        if purchase.delays > max(1, self._settings.retries_max):
            return ()
        return (Again(max(0.1, until_open_s) + self._chance.uniform(0.05, OPENING_SPREAD_S), purchase),)

    def _later(self, purchase: Purchase, answer: Answer) -> tuple[Step, ...]:
        purchase.delays += 1
        bound = ASKS_MAX if purchase.in_doubt else self._settings.retries_max
        if purchase.delays > bound or purchase.asks >= ASKS_MAX:
            return ()
        return (Again(answer.retry_after_s + self._chance.uniform(0.0, 0.5), purchase),)

    def _ask_again(self, purchase: Purchase) -> tuple[Step, ...]:
        if purchase.asks >= ASKS_MAX:
            return ()
        wait_s = BACKOFF_S[min(purchase.asks, len(BACKOFF_S)) - 1]
        return (Again(wait_s * self._chance.uniform(0.8, 1.2), purchase),)

    def _purchase(self, buyer: str, sku: Sku, quantity: int) -> Purchase:
        return Purchase(buyer, f"{self._run}-k{next(self._serial)}", sku.sku, quantity)

    def _quantity(self, sku: Sku) -> int:
        if sku.per_buyer_max == 1 or self._chance.random() >= SEVERAL_SHARE:
            return 1
        return 1 + int(self._chance.random() * sku.per_buyer_max)

    def _choose(self) -> Sku:
        at = self._chance.random()
        for sku, bound in zip(self._skus, self._bounds, strict=True):
            if at < bound:
                return sku
        return self._skus[-1]
