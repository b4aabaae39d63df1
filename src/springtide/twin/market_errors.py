"""How the twin's cloud refuses, each with the code that the ECS and ECI documentation gives for it.

They are the Cloud port's errors, so that a simulation meets what a fleet meets; `code` and `status` (HTTP) are what
the served cloud answers. Sources: the error codes of RunInstances, DeleteInstances and CreateContainerGroup.
"""

from springtide.errors import CloudOutOfStock, CloudQuotaExceeded, CloudRefused, CloudThrottled

FORBIDDEN, BAD_REQUEST = 403, 400


class NoStock(CloudOutOfStock):
    """ECS `OperationDenied.NoStock`, ECI `NoInstanceStock`: fewer machines than the order's least."""

    status = FORBIDDEN

    def __init__(self, offer_key: str, code: str = "OperationDenied.NoStock") -> None:
        """Nothing is said of how many there are."""
        super().__init__(f"{offer_key} is sold out in this quantity; ask another zone or type, or for fewer")
        self.code = code


class ZoneNotOnSale(CloudOutOfStock):
    """ECS `Zone.NotOnSale`: nothing is sold in this zone now."""

    status = FORBIDDEN
    code = "Zone.NotOnSale"

    def __init__(self, zone: str) -> None:
        """All offers of the zone are meant."""
        super().__init__(f"nothing is sold in {zone} now; ask another zone")


class BidTooLow(CloudOutOfStock):
    """ECS `InvalidSpotPriceLimit.LowerThanPublicPrice`: the spot price is above the order's limit."""

    status = BAD_REQUEST
    code = "InvalidSpotPriceLimit.LowerThanPublicPrice"

    def __init__(self, offer_key: str) -> None:
        """The price itself can be asked for."""
        super().__init__(f"the price limit for {offer_key} is below the spot price; raise it, or buy on demand")


class QuotaReached(CloudQuotaExceeded):
    """ECS has two spellings, `QuotaExceed.ElasticQuota` and `QuotaExceeded.ElasticQuota`, and `QuotaExceed.Spot`."""

    status = FORBIDDEN

    def __init__(self, code: str, what: str) -> None:
        """`what` names the quota that is reached."""
        super().__init__(f"{what} is reached; raise the quota or ask for fewer machines")
        self.code = code


class Throttled(CloudThrottled):
    """`Throttling.User` (too many calls of one API) or `Throttling` (too many creations, or the service itself)."""

    status = BAD_REQUEST

    def __init__(self, action: str, retry_after_s: float, code: str = "Throttling.User") -> None:
        """`action` is the API that was called too often."""
        super().__init__(f"too many calls of {action}; call again in {retry_after_s:.1f} s", retry_after_s)
        self.code = code


class TokenMismatch(CloudRefused):
    """`IdempotentParameterMismatch`: the client token was used for another order."""

    status = BAD_REQUEST
    code = "IdempotentParameterMismatch"

    def __init__(self, token: str) -> None:
        """The same token must come with the same parameters, to the letter."""
        super().__init__(f"client token {token} was used with other parameters; send the first order, or a new token")


class NotOffered(CloudRefused):
    """`InvalidResourceType.NotSupported`: nobody sells this here, ever."""

    status = FORBIDDEN
    code = "InvalidResourceType.NotSupported"

    def __init__(self, offer_key: str) -> None:
        """Zone, type or market is unknown."""
        super().__init__(f"{offer_key} is not sold by this cloud; ask for an offer of its list")


class BadOrder(CloudRefused):
    """`InvalidParameter`: the order makes no sense."""

    status = BAD_REQUEST
    code = "InvalidParameter"


class NotEnoughBalance(CloudRefused):
    """`InvalidAccountStatus.NotEnoughBalance`: the account cannot pay for an hour of it."""

    status = FORBIDDEN
    code = "InvalidAccountStatus.NotEnoughBalance"

    def __init__(self) -> None:
        """A person has to pay something in."""
        super().__init__("the account's balance does not cover the order; pay something in")


Refusal = (
    NoStock
    | ZoneNotOnSale
    | BidTooLow
    | QuotaReached
    | Throttled
    | TokenMismatch
    | NotOffered
    | BadOrder
    | NotEnoughBalance
)
"""Whatever a call of the market raises."""
