"""Each documented code means one of our errors, and no text tells a secret."""

import pytest

from springtide.drivers import alibaba_errors
from springtide.drivers.alibaba_errors import NotThere, TokenUsed, cloud_error
from springtide.errors import (
    CloudError,
    CloudOutOfStock,
    CloudQuotaExceeded,
    CloudRefused,
    CloudThrottled,
    CloudUnavailable,
)


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("OperationDenied.NoStock", 403, CloudOutOfStock),
        ("NoInstanceStock", 403, CloudOutOfStock),
        ("Zone.NotOnSale", 403, CloudOutOfStock),
        ("InvalidVSwitchId.IpNotEnough", 403, CloudOutOfStock),
        ("OperationDenied.SpotPriceLowerThanPublicPrice", 403, CloudOutOfStock),
        ("ContainerGroup.NoStock", 400, CloudOutOfStock),
        ("QuotaExceed.ElasticQuota", 403, CloudQuotaExceeded),
        ("QuotaExceeded.ElasticQuota", 403, CloudQuotaExceeded),
        ("QuotaExceed.Spot", 403, CloudQuotaExceeded),
        ("QuotaExceed.SomethingNew", 403, CloudQuotaExceeded),
        ("Throttling", 400, CloudThrottled),
        ("Throttling.User", 400, CloudThrottled),
        ("Throttling.Resource", 429, CloudThrottled),
        ("InvalidAccountStatus.NotEnoughBalance", 403, CloudRefused),
        ("Account.Arrearage", 400, CloudRefused),
        ("OperationDenied.DeletionProtection", 403, CloudRefused),
        ("IdempotentParameterMismatch", 400, TokenUsed),
        ("InvalidInstanceId.NotFound", 404, NotThere),
        ("IdempotentProcessing", 403, CloudUnavailable),
        ("OperationConflict", 409, CloudUnavailable),
        ("IncorrectInstanceStatus.Initializing", 403, CloudUnavailable),
        ("InternalError", 500, CloudUnavailable),
        ("NeverHeardOf", 503, CloudUnavailable),
        ("NeverHeardOf", 400, CloudRefused),
        ("", 502, CloudUnavailable),
    ],
)
def test_a_code_means_one_of_our_errors(code: str, status: int, kind: type[CloudError]) -> None:
    error = cloud_error("RunInstances", code, "said the cloud", status)
    assert type(error) is kind
    assert "RunInstances" in str(error)
    assert (code or str(status)) in str(error)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("The resource is out of usage.", CloudOutOfStock),
        ("Sales of this resource are temporarily suspended in the specified region", CloudOutOfStock),
        ("The creation of Instance to the specified Zone is not allowed.", CloudOutOfStock),
        ("The specified Image is disabled or is deleted.", CloudRefused),
    ],
)
def test_operation_denied_alone_is_told_apart_by_its_text(message: str, kind: type[CloudError]) -> None:
    assert type(cloud_error("RunInstances", "OperationDenied", message, 403)) is kind


def test_no_code_has_two_meanings() -> None:
    tables = [
        alibaba_errors.OUT_OF_STOCK,
        alibaba_errors.QUOTA,
        alibaba_errors.UNAVAILABLE,
        alibaba_errors.REFUSED,
        alibaba_errors.TOKEN_MISMATCH,
        alibaba_errors.GONE,
        alibaba_errors.DRY_RUN_PASSED,
    ]
    assert len(set().union(*tables)) == sum(len(table) for table in tables)


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "InvalidAccessKeyId.NotFound", "IncompleteSignature"])
def test_what_the_cloud_says_of_keys_is_not_passed_on(code: str) -> None:
    error = cloud_error("RunInstances", code, "server string to sign is: LTAI-SECRET", 403)
    assert type(error) is CloudRefused
    assert "LTAI" not in str(error)
    assert "access key" in str(error)


def test_a_throttle_says_when_to_come_back() -> None:
    error = cloud_error("RunInstances", "Throttling.User", "slow down", 400, retry_after_s=7.5)
    assert isinstance(error, CloudThrottled)
    assert error.retry_after_s == 7.5


def test_a_long_text_is_cut() -> None:
    assert len(str(cloud_error("RunInstances", "InvalidParameter", "x" * 10_000, 400))) < 600
