"""The bill of rented machines, exact: whole milliseconds by price, added up only when it is asked for.

Source: pay-as-you-go and spot instances are billed by the second (ECS, "Billing overview"); a started second counts.
"""

import math
from collections import Counter

MS_PER_H = 3_600_000

Terms = tuple[int, float, int]
"""When a machine's bill began, its price in fen/h, and the granularity of the bill in ms."""


class Bill:
    """What has been rented, and what is: machines with the same terms are one entry, so asking is cheap."""

    def __init__(self) -> None:
        """Nothing has been rented."""
        self.open: Counter[Terms] = Counter()
        self.closed_ms: Counter[float] = Counter()
        """Milliseconds of machines that are gone, by price."""

    def begin(self, terms: Terms, count: int) -> None:
        """Let the bill of some machines begin."""
        self.open[terms] += count

    def end(self, terms: Terms, now_ms: int) -> None:
        """End the bill of one machine."""
        self.closed_ms[terms[1]] += billed_ms(terms, now_ms)
        self.open[terms] -= 1
        if not self.open[terms]:
            del self.open[terms]

    def fen(self, now_ms: int) -> float:
        """Everything until now."""
        by_price = self.closed_ms.copy()
        for terms, count in self.open.items():
            by_price[terms[1]] += count * billed_ms(terms, now_ms)
        return math.fsum(ms * price / MS_PER_H for price, ms in by_price.items())

    def fen_per_h(self) -> float:
        """What an hour of everything that is rented now costs."""
        return math.fsum(count * price for (_, price, _), count in self.open.items())


def billed_ms(terms: Terms, now_ms: int) -> int:
    """The time that one machine is billed for until now: every started unit."""
    began_ms, _, unit_ms = terms
    return -(-(now_ms - began_ms) // unit_ms) * unit_ms
