"""The stock of a sale and its orders as amounts: reserved, paid, expired and sold again; and the journal of them."""

from springtide.twin.simulation.flow import PathSettings
from springtide.twin.simulation.path_lines import Line


class StockBook:
    """What is left, reserved and paid, in units (one for each order); and the orders that are not recorded yet."""

    __slots__ = (
        "_hold",
        "_journal_max",
        "_pay",
        "_pay_share",
        "_recorder_per_s",
        "journal",
        "left",
        "paid",
        "reserved",
    )

    def __init__(self, settings: PathSettings) -> None:
        """Nothing is sold."""
        self.left = float(settings.stock)
        self.reserved = self.paid = self.journal = 0.0
        self._pay = Line(settings.pay_after_s)
        self._hold = Line(settings.hold_s)
        self._pay_share = settings.pay_share
        self._recorder_per_s = settings.recorder_per_s
        self._journal_max = settings.journal_max

    def settle(self, until_s: float) -> float:
        """What is paid or expires before this moment; the expired units are for sale again, and are returned."""
        paid = self._pay.take(until_s)
        expired = self._hold.take(until_s)
        self.paid += paid
        self.reserved -= paid + expired
        self.left += expired
        return expired

    def room(self, seconds: float) -> float:
        """How many orders the journal takes within so many seconds."""
        return max(0.0, self._journal_max - self.journal) + self._recorder_per_s * seconds

    def sell(self, at_s: float, units: float) -> None:
        """These are ordered, around this moment."""
        self.left = max(0.0, self.left - units)
        self.reserved += units
        self.journal += units
        paid = units * self._pay_share
        self._pay.put(at_s, paid)
        self._hold.put(at_s, units - paid)

    def record(self, seconds: float) -> float:
        """What goes from the journal into the ledger in so many seconds."""
        recorded = min(self.journal, self._recorder_per_s * seconds)
        self.journal -= recorded
        return recorded
