"""What becomes of requests that are no people: the rate limits of the order path, as amounts.

Each account, and each network, has an allowance as `sale.admission.Rates` gives it; bots use all of theirs, evenly. An
account that holds an order hears so, and buys nothing more, whatever became of the order.
"""

from springtide.twin.simulation.flow import PathSettings


class BotLimits:
    """The allowances that are left, and the accounts that hold no order yet."""

    __slots__ = (
        "_address_full",
        "_address_left",
        "_address_per_s",
        "_buyer_full",
        "_buyer_left",
        "_buyer_per_s",
        "free",
    )

    def __init__(self, settings: PathSettings) -> None:
        """All allowances are full."""
        self._buyer_per_s = settings.bot_buyers * settings.buyer_rate_max
        self._address_per_s = settings.bot_addresses * settings.address_rate_max
        self._buyer_left = self._buyer_full = float(settings.bot_buyers * settings.buyer_burst_max)
        self._address_left = self._address_full = float(settings.bot_addresses * settings.address_burst_max)
        self.free = float(settings.bot_buyers)

    def allow(self, requests: float, seconds: float) -> float:
        """How many of the requests of so many seconds are within the limits."""
        self._buyer_left += self._buyer_per_s * seconds
        self._address_left += self._address_per_s * seconds
        by_address = min(requests, self._address_left)
        allowed = min(by_address, self._buyer_left)
        self._address_left = min(self._address_full, self._address_left - by_address)
        self._buyer_left = min(self._buyer_full, self._buyer_left - allowed)
        return allowed

    def allow_one(self, seconds: float) -> bool:
        """Whether one request, so many seconds after the one before, is within the limits; whole requests only."""
        self._buyer_left = min(self._buyer_full, self._buyer_left + self._buyer_per_s * seconds)
        self._address_left = min(self._address_full, self._address_left + self._address_per_s * seconds)
        if self._address_left < 1.0:
            return False
        self._address_left -= 1.0
        if self._buyer_left < 1.0:
            return False
        self._buyer_left -= 1.0
        return True
