"""The answers that are not a success: `application/problem+json` (RFC 9457), each with a stable `code`."""

from typing import Final

import msgspec

REPEAT = "Repeating the request with the same Idempotency-Key is safe."


class Problem:
    """One kind of refusal. `index` numbers it for the counters; `closes` ends the connection."""

    __slots__ = ("body", "closes", "code", "detail", "head", "index", "status", "title")

    def __init__(self, status: int, code: str, title: str, detail: str, *, closes: bool = False) -> None:
        """Encode everything that does not change from one answer to the next."""
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.closes = closes
        self.index = len(PROBLEMS)
        self.head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/problem+json\r\n".encode()
        self.body = self.body_of(detail)
        PROBLEMS.append(self)

    def body_of(self, detail: str, order_id: str = "") -> bytes:
        """The body with another detail, and with the order already held when there is one."""
        fields: dict[str, object] = {
            "type": f"urn:springtide:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": detail,
            "code": self.code,
        }
        if order_id:
            fields["order_id"] = order_id
        return msgspec.json.encode(fields)


_REASONS: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    410: "Gone",
    411: "Length Required",
    413: "Content Too Large",
    417: "Expectation Failed",
    422: "Unprocessable Content",
    425: "Too Early",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}

PROBLEMS: Final[list[Problem]] = []
"""All of them, by `index`."""

BAD_HTTP = Problem(
    400,
    "bad_http",
    "Not valid HTTP",
    "The request could not be read as HTTP/1.1; the connection is closed.",
    closes=True,
)
BAD_BODY = Problem(
    400, "bad_body", "Bad body", 'Send JSON such as {"sku": "tea", "quantity": 1}, with no other members.'
)
BAD_KEY = Problem(
    400,
    "bad_idempotency_key",
    "Bad Idempotency-Key",
    "Send one Idempotency-Key of 1 to 64 letters, digits, '_', '.', ':' or '-', new for each purchase.",
)
BAD_SENT = Problem(
    400,
    "bad_purchase_sent",
    "Bad Purchase-Sent-Ms",
    "Purchase-Sent-Ms is the moment at which the purchase was first sent, in Unix milliseconds.",
)
UNAUTHORIZED = Problem(
    401,
    "unauthorized",
    "No valid buyer token",
    "Send one header Authorization: Bearer with a buyer token for this sale.",
)
NOT_FOUND = Problem(404, "not_found", "No such resource", "There is nothing at this address.")
UNKNOWN_SALE = Problem(404, "unknown_sale", "No such sale", "There is no sale of this name.")
UNKNOWN_SKU = Problem(404, "unknown_sku", "No such SKU", "This sale does not sell this SKU; nothing was reserved.")
NO_ORDER = Problem(404, "no_order", "No such order", "This buyer has no order of this name in this sale.")
NO_PURCHASE = Problem(
    404,
    "no_purchase",
    "No such purchase",
    "This buyer has made no purchase with this Idempotency-Key, and one that was sent before can be made no more.",
)
METHOD_NOT_ALLOWED = Problem(405, "method_not_allowed", "Method not allowed", "See the Allow header.")
TIMED_OUT = Problem(
    408,
    "request_timeout",
    "The request took too long",
    "It did not arrive whole in time; send it again.",
    closes=True,
)
SOLD_OUT = Problem(409, "sold_out", "Sold out", "Fewer units are left than were asked for; nothing was reserved.")
LIMIT_REACHED = Problem(
    409, "limit_reached", "Limit reached", "A buyer may hold no more of this SKU; nothing more was reserved."
)
CLOSED = Problem(410, "closed", "The sale is over", "The sale has closed; nothing was reserved.")
LENGTH_REQUIRED = Problem(
    411,
    "length_required",
    "Length required",
    "Send a Content-Length header, or the body in chunks.",
    closes=True,
)
TOO_LARGE = Problem(413, "content_too_large", "Body too large", "The body is over this server's limit.", closes=True)
EXPECTATION_FAILED = Problem(
    417, "expectation_failed", "Unknown expectation", "Only Expect: 100-continue is understood.", closes=True
)
KEY_REUSED = Problem(
    422,
    "key_reused",
    "Idempotency-Key reused",
    "This key has already made a different purchase; use a new key.",
)
NOT_OPEN = Problem(425, "not_open", "The sale is not open yet", "Come back at the opening; nothing was reserved.")
RATE_LIMITED = Problem(
    429,
    "rate_limited",
    "Too many requests",
    f"This buyer sends too many requests; nothing was reserved. {REPEAT}",
)
ADDRESS_LIMITED = Problem(
    429,
    "address_rate_limited",
    "Too many requests from this address",
    f"This address sends too many requests; nothing was reserved. {REPEAT}",
)
NOT_ADMITTED = Problem(
    429,
    "not_admitted",
    "Not admitted",
    f"All places are taken at this moment; nothing was reserved. {REPEAT}",
)
HEADERS_TOO_LARGE = Problem(
    431, "headers_too_large", "Headers too large", "The headers are over this server's limit.", closes=True
)
INTERNAL = Problem(500, "internal", "Internal error", f"The request failed inside the server. {REPEAT}", closes=True)
NOT_IMPLEMENTED = Problem(
    501,
    "not_implemented",
    "Not implemented",
    "This method or transfer coding is not implemented.",
    closes=True,
)
UNAVAILABLE = Problem(
    503,
    "unavailable",
    "Unavailable",
    f"The sale cannot be reached or is paused; nothing was reserved. {REPEAT}",
)
OVERLOADED = Problem(
    503, "overloaded", "Overloaded", f"Too many requests are under way; nothing was reserved. {REPEAT}"
)
NOT_READY = Problem(503, "not_ready", "Not ready", "The replica is draining, or the inventory does not answer it.")
TOO_MANY_CONNECTIONS = Problem(
    503,
    "too_many_connections",
    "Too many connections",
    f"This replica takes no more connections. {REPEAT}",
    closes=True,
)
OUTCOME_UNKNOWN = Problem(
    503,
    "outcome_unknown",
    "Outcome unknown",
    f"No answer came in time: the purchase may have been made. {REPEAT} It tells what became of it.",
)
