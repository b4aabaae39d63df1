"""What Alibaba Cloud's error codes mean to us: a table of the documented ones, and a rule for all others.

Sources: the error codes of RunInstances, CreateInstance, DeleteInstances and DescribeInstances (ECS 2014-05-26) and of
ECI 2018-08-08 in the public documentation, https://api.alibabacloud.com/document/Ecs/2014-05-26/errorCode and
https://help.aliyun.com/en/eci/developer-reference/api-eci-2018-08-08-errorcodes.
"""

from collections.abc import Collection
from typing import Final

from springtide.errors import (
    CloudError,
    CloudOutOfStock,
    CloudQuotaExceeded,
    CloudRefused,
    CloudThrottled,
    CloudUnavailable,
)


class TokenUsed(CloudRefused):
    """The client token was used for another request."""


class NotThere(CloudRefused):
    """An instance or a group does not exist (any more)."""


DRY_RUN_PASSED: Final = frozenset({"DryRunOperation", "DRYRUN.SUCCESS", "DryRun.Success"})
"""Codes of a success: a dry run that found nothing wrong is answered with an error."""

GONE: Final = frozenset(
    {
        "InvalidInstanceId.NotFound",
        "InvalidInstanceIds.NotFound",
        "InvalidInstanceId.Malformed",
        "ContainerGroupNotFound",
        "InvalidContainerGroupId.NotFound",
        "InvalidParameter.ContainerGroupId.NotFound",
    }
)
"""Codes for what does not exist (any more)."""

TOKEN_MISMATCH: Final = frozenset({"IdempotentParameterMismatch", "InvalidClientToken.Mismatch"})
"""Codes for a client token that was used for another request."""

OUT_OF_STOCK: Final = frozenset(
    {
        "OperationDenied.NoStock",
        "NoInstanceStock",
        "Zone.NotOnSale",
        "Zone.NotOpen",
        "InsufficientCapacity",
        "Invalid.Zone.NotEnoughResource",
        "InvalidResourceType.NotSupported",
        "InvalidInstanceType.ZoneNotSupported",
        "InvalidInstanceType.PhasedOut",
        "InstanceType.Offline",
        "NodeControllerUnavailable",
        "OperationDenied.PaygNotAvailable",
        "OperationDenied.SpotPriceLowerThanPublicPrice",
        "InvalidSpotPriceLimit.LowerThanPublicPrice",
        # Addresses are capacity of a zone's network: another zone has others.
        "InvalidVSwitchId.IpNotEnough",
        "InvalidVSwitch.IpNotEnough",
        "QuotaExceeded.PrivateIpAddress",
        "NoStock",
        "StockClose",
        "StockExhaust",
        "ContainerGroup.NoStock",
    }
)
"""The zone cannot deliver this type now."""

QUOTA: Final = frozenset(
    {
        "QuotaExceed.ElasticQuota",
        "QuotaExceeded.ElasticQuota",
        "QuotaExceed.Spot",
        "QuotaExceed.AfterpayInstance",
        "QuotaExceed.PostPaidDisk",
        "QuotaExceeded.PostpaidDataDiskCapacity",
        "SecurityGroupInstanceLimitExceed",
        "ContainerGroupQuotaExceeded",
        "QuotaExceeded",
    }
)
"""The account's limit; codes that begin with QuotaExceed are too."""

UNAVAILABLE: Final = frozenset(
    {
        "InternalError",
        "InternalError.AllocateUnderlayIp",
        "Mayi.InternalError",
        "ServiceUnavailable",
        "UnknownError",
        "OperationConflict",
        "Operation.Conflict",
        "IdempotentProcessing",
        "Idempotence.Processing",
        "LastOrderProcessing",
        "SignatureNonceUsed",
        "IncorrectInstanceStatus",
        "IncorrectInstanceStatus.Initializing",
    }
)
"""Something of the moment: the same request again may pass."""

REFUSED: Final = frozenset(
    {
        "InvalidAccountStatus.NotEnoughBalance",
        "InsufficientBalance",
        "Account.Arrearage",
        "InvalidAccountStatus",
        "PaymentMethodNotFound",
        "InvalidPayMethod",
        "RealNameAuthenticationError",
        "SecurityRisk.3DVerification",
        "Forbidden.RiskControl",
        "OperationDenied.DeletionProtection",
        "RegionUnauthorized",
        "InvalidImageId.NotFound",
        "InvalidSecurityGroupId.NotFound",
        "InvalidVSwitchId.NotFound",
        "InvalidKeyPairName.NotFound",
        "OperationDenied.ImageNotValid",
        "OperationDenied.InconsistentNetwork",
    }
)
"""The account or the order: a person has to look."""

SECRETIVE: Final = ("Signature", "InvalidAccessKey", "IncompleteSignature", "InvalidSecurityToken", "MissingAccessKey")
"""Codes that begin so come with a text that names keys or what was signed: it is not passed on."""

_BUSY_TEXTS = ("out of usage", "temporarily suspended", "is not allowed", "Another Instance has been creating")
_NEXT: Final[tuple[tuple[type[CloudError], str], ...]] = (
    (CloudOutOfStock, "ask another zone or type"),
    (CloudQuotaExceeded, "raise the quota in the Quota Center, or ask for less"),
    (CloudUnavailable, "repeat it with the same token"),
    (CloudError, "have a person look at the account and the settings"),
)
_SERVER_FAULT = 500
_TEXT_MAX = 300


def kind_of(code: str, message: str, status: int) -> type[CloudError]:
    """Which of our errors a code is; `status` is of HTTP and decides about a code that nobody knows."""
    if code.startswith(("Throttling", "Degrade.")):
        return CloudThrottled
    tables: tuple[tuple[Collection[str], type[CloudError]], ...] = (
        (OUT_OF_STOCK, CloudOutOfStock),
        (QUOTA, CloudQuotaExceeded),
        (UNAVAILABLE, CloudUnavailable),
        (TOKEN_MISMATCH, TokenUsed),
        (GONE, NotThere),
        (REFUSED, CloudRefused),
    )
    for codes, kind in tables:
        if code in codes:
            return kind
    if code.startswith("QuotaExceed"):
        return CloudQuotaExceeded
    # "OperationDenied" alone is many things; only its text tells stock from the rest.
    if code == "OperationDenied" and any(text in message for text in _BUSY_TEXTS):
        return CloudOutOfStock
    return CloudUnavailable if status >= _SERVER_FAULT or not status else CloudRefused


def cloud_error(api: str, code: str, message: str, status: int, retry_after_s: float = 0.0) -> CloudError:
    """Our error for an answer of the cloud; `retry_after_s` is what it said, 0 when it said nothing."""
    kind = kind_of(code, message, status)
    said = "" if code.startswith(SECRETIVE) or not message else f": {message[:_TEXT_MAX]}"
    if kind is CloudThrottled:
        return CloudThrottled(f"{api}: {code}{said}; repeat it later", retry_after_s)
    if code.startswith(SECRETIVE):
        return CloudRefused(f"{api}: {code}; check the access key and its secret, and the machine's clock")
    return kind(f"{api}: {code or f'HTTP {status}'}{said}; {_next_step(kind)}")


def _next_step(kind: type[CloudError]) -> str:
    return next(step for known, step in _NEXT if issubclass(kind, known))
