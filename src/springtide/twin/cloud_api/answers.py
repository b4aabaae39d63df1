"""What the served cloud answers: JSON with a RequestId, and errors as {"Code", "Message", "RequestId", "HostId"}.

Source: "Error codes" of the ECS API reference (shape and HTTP statuses), and the common client errors of Alibaba Cloud
(MissingParameter, SignatureDoesNotMatch, InvalidTimeStamp.Expired … with status 400, not-found ones with 404).
"""

from datetime import UTC, datetime

from springtide.errors import SpringtideError

BAD_REQUEST, FORBIDDEN, NOT_FOUND = 400, 403, 404

Json = dict[str, "str | int | float | bool | Json | list[Json] | list[str]"]


class ApiError(SpringtideError):
    """An error of the API: its code, its HTTP status, and what to do."""

    def __init__(self, code: str, message: str, status: int = BAD_REQUEST) -> None:
        """As the documentation lists it."""
        super().__init__(message)
        self.code = code
        self.status = status


def missing(name: str) -> ApiError:
    """A parameter that is required was not sent."""
    return ApiError("MissingParameter", f"The input parameter {name} that is mandatory for this action is missing.")


def invalid(name: str, why: str) -> ApiError:
    """A parameter that makes no sense."""
    return ApiError("InvalidParameter", f"The parameter {name} is not valid: {why}")


def minute_text(ms: int) -> str:
    """A moment as DescribeInstances shows it: ISO 8601, UTC, `yyyy-MM-ddTHH:mmZ`."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%MZ")


def second_text(ms: int) -> str:
    """A moment as requests carry it: ISO 8601, UTC, `yyyy-MM-ddTHH:mm:ssZ`."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_moment(text: str) -> int:
    """A moment in either form, in Unix ms. Raises ValueError."""
    form = "%Y-%m-%dT%H:%MZ" if text.count(":") == 1 else "%Y-%m-%dT%H:%M:%SZ"
    return round(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp() * 1000)
