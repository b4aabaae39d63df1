"""What comes back to the order path later, as amounts due one delay after they went in: people, money, stock."""

from collections import deque

GRAINS = 1_024
"""A line holds about so many amounts at most: what comes due within a part of the delay that small comes together."""


class Line:
    """Amounts that come due one fixed delay after they went in."""

    __slots__ = ("_amounts", "_due_s", "_grain_s", "delay_s", "total")

    def __init__(self, delay_s: float) -> None:
        """`delay_s` is in seconds."""
        self.delay_s = delay_s
        self.total = 0.0
        self._grain_s = delay_s / GRAINS
        self._due_s: deque[float] = deque()
        self._amounts: deque[float] = deque()

    def put(self, at_s: float, amount: float) -> None:
        """Add so much, from this moment; moments never go back."""
        if amount <= 0.0:
            return
        due_s = at_s + self.delay_s
        self.total += amount
        if self._due_s and due_s - self._due_s[-1] < self._grain_s:
            self._amounts[-1] += amount
            return
        self._due_s.append(due_s)
        self._amounts.append(amount)

    def take(self, until_s: float) -> float:
        """What is due before this moment."""
        due = self._due_s
        if not due or due[0] >= until_s:
            return 0.0
        taken = 0.0
        while due and due[0] < until_s:
            due.popleft()
            taken += self._amounts.popleft()
        self.total -= taken
        return taken


class Lines:
    """Amounts of several kinds at once, as one line each with the same delay."""

    __slots__ = ("_amounts", "_due_s", "_grain_s", "_kinds", "_nothing", "delay_s")

    def __init__(self, delay_s: float, kinds: int) -> None:
        """`delay_s` is in seconds."""
        self.delay_s = delay_s
        self._kinds = range(kinds)
        self._nothing = (0.0,) * kinds
        self._grain_s = delay_s / GRAINS
        self._due_s: deque[float] = deque()
        self._amounts: deque[list[float]] = deque()

    def put(self, at_s: float, amounts: list[float]) -> None:
        """These, from this moment; moments never go back. The list is kept."""
        due_s = at_s + self.delay_s
        if self._due_s and due_s - self._due_s[-1] < self._grain_s:
            last = self._amounts[-1]
            for kind in self._kinds:
                last[kind] += amounts[kind]
            return
        self._due_s.append(due_s)
        self._amounts.append(amounts)

    def take(self, until_s: float) -> "list[float] | tuple[float, ...]":
        """What is due before this moment, of each kind."""
        due = self._due_s
        if not due or due[0] >= until_s:
            return self._nothing
        due.popleft()
        taken = self._amounts.popleft()
        while due and due[0] < until_s:
            due.popleft()
            more = self._amounts.popleft()
            for kind in self._kinds:
                taken[kind] += more[kind]
        return taken
