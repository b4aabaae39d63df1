"""The counter's and the back office's HTTP, as bytes and back."""

import msgspec

from springtide.model import Payment
from springtide.sale import webhook
from springtide.twin.crowd.buyers import Answer, Outcome, Purchase
from springtide.twin.crowd.client import Response

_TOO_MANY = 429
_UNAVAILABLE = 503
_OK = frozenset({200, 201})
_SERVER_ERROR = 500


class _OrderBody(msgspec.Struct):
    order_id: str
    status: str
    pay_by_ms: int = 0


class _Problem(msgspec.Struct):
    code: str = ""


class _PaymentBody(msgspec.Struct):
    outcome: str = ""


_ORDER = msgspec.json.Decoder(_OrderBody)
_PROBLEM = msgspec.json.Decoder(_Problem)
_PAYMENT = msgspec.json.Decoder(_PaymentBody)


def page_request(host: str, sale: str) -> bytes:
    """The page of a sale."""
    return f"GET /v1/sales/{sale} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def order_request(host: str, sale: str, purchase: Purchase) -> bytes:
    """One attempt at a purchase; `purchase.token` must be set."""
    body = f'{{"sku":"{purchase.sku}","quantity":{purchase.quantity}}}'
    return (
        f"POST /v1/sales/{sale}/orders HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {purchase.token}\r\n"
        f"Idempotency-Key: {purchase.key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def payment_request(host: str, payment: Payment, secret: bytes) -> bytes:
    """A payment as the provider reports it, signed."""
    body = msgspec.json.encode(payment)
    head = (
        f"POST /v1/payments HTTP/1.1\r\nHost: {host}\r\n"
        f"{webhook.SIGNATURE_HEADER}: {webhook.sign(secret, body)}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def read_answer(response: Response) -> Answer:
    """What the answer means for the buyer. A body that cannot be read leaves the outcome unknown."""
    status = response.status
    if status == 0:
        return Answer(Outcome.UNKNOWN, 0, response.failure)
    if status in _OK:
        return _read_order(status, response.body)
    code = problem_code(response.body)
    return Answer(_outcome(status, code), status, code, response.retry_after_s)


def problem_code(body: bytes) -> str:
    """The `code` of an application/problem+json body; empty when there is none."""
    try:
        return _PROBLEM.decode(body).code
    except msgspec.DecodeError:
        return ""


def read_payment_outcome(response: Response) -> str:
    """The `outcome` of a payment that was taken, as the back office says it; empty when it says none."""
    try:
        return _PAYMENT.decode(response.body).outcome
    except msgspec.DecodeError:
        return ""


def _read_order(status: int, body: bytes) -> Answer:
    try:
        order = _ORDER.decode(body)
    except msgspec.DecodeError:
        return Answer(Outcome.UNKNOWN, status, "unreadable")
    return Answer(Outcome.HELD, status, order.status, 0.0, order.order_id, order.pay_by_ms)


def _outcome(status: int, code: str) -> Outcome:
    """A 503 without a code is the load balancer's own: the counter may have acted before it was lost."""
    if status == _TOO_MANY or (status == _UNAVAILABLE and code not in {"", "outcome_unknown"}):
        return Outcome.LATER
    if status >= _SERVER_ERROR:
        return Outcome.UNKNOWN
    if code == "sold_out":
        return Outcome.SOLD_OUT
    return Outcome.NOT_OPEN if code == "not_open" else Outcome.ENDED
