"""The payment provider's webhook, and cancellation by whoever shares its secret.

Bodies are signed as `webhook.py` says, and the signature is checked before a body is read as JSON. A
cancellation names its order in the signed body as well as in the path: no other call's signature serves for
it. A call that is replayed has no further effect: payments are told apart by their ids, and an order ends once.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Header, Request
from pydantic import BaseModel

from springtide.model import IDEMPOTENCY_KEY, Payment, PaymentOutcome, require_identifier
from springtide.sale.backoffice.office import TheOffice
from springtide.sale.backoffice.problems import ProblemError, bad_body, unknown_order
from springtide.sale.backoffice.schemas import CancelBody, OrderStateOut, PaymentBody, PaymentOut
from springtide.sale.webhook import SIGNATURE_HEADER, verify

AMOUNT_FEN_MAX = 2**53
"""The largest amount that every JSON reader keeps exact (RFC 8259, section 6)."""

SIGNED_FIELD = "x-signed"
"""Where an operation's description states that a signature, and no key, opens it."""

_T = TypeVar("_T")

router = APIRouter(prefix="/v1", tags=["payments"])


class CancelRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a cancellation. `sale` and `buyer` find an order that the ledger does not have yet."""

    order_id: str
    sale: str
    buyer: str


def signed(schema: type[BaseModel]) -> dict[str, Any]:
    """For the description of a route: its body, which is read only once its signature is found good."""
    content = {"application/json": {"schema": schema.model_json_schema()}}
    return {SIGNED_FIELD: True, "requestBody": {"required": True, "content": content}}


Signature = Annotated[str, Header(alias=SIGNATURE_HEADER, description="HMAC-SHA256 of the body, in hexadecimal.")]


@router.post("/payments", openapi_extra=signed(PaymentBody))
async def take_payment(request: Request, office: TheOffice, signature: Signature = "") -> PaymentOut:
    """Apply a payment; said again it has the same outcome. A `refund_due` is to be given back to the buyer."""
    payment = _decode(await _signed_body(request, office.webhook_secret, signature), Payment)
    _check_payment(payment)
    outcome = await office.payments.pay(payment)
    if outcome is PaymentOutcome.UNKNOWN_ORDER:
        raise unknown_order(payment.order_id)
    return PaymentOut(outcome=outcome.value)


@router.post("/orders/{order_id}/cancel", openapi_extra=signed(CancelBody))
async def cancel_order(order_id: str, request: Request, office: TheOffice, signature: Signature = "") -> OrderStateOut:
    """Cancel a reserved order; one that has ended, or is paid, stays what it is."""
    wanted = _decode(await _signed_body(request, office.webhook_secret, signature), CancelRequest)
    _check_names(order_id, wanted.sale, wanted.buyer)
    if wanted.order_id != order_id:
        raise bad_body(f"the body cancels {wanted.order_id}, the path {order_id}")
    state = await office.payments.cancel(order_id, wanted.sale, wanted.buyer)
    if state is None:
        raise unknown_order(order_id)
    return OrderStateOut(order_id=order_id, state=state)


async def _signed_body(request: Request, secret: bytes, signature: str) -> bytes:
    body = await request.body()
    if not verify(secret, body, signature):
        detail = f"send {SIGNATURE_HEADER} with the HMAC-SHA256 of the body, in hexadecimal"
        raise ProblemError(401, "bad_signature", "No valid signature", detail)
    return body


def _decode(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_body(str(error)) from error


def _check_payment(payment: Payment) -> None:
    _check_names(payment.order_id, payment.sale, payment.buyer)
    if not IDEMPOTENCY_KEY.fullmatch(payment.payment_id):
        raise bad_body("payment_id must be 1 to 64 letters, digits, '_', '.', ':' or '-'")
    if not 0 <= payment.amount_fen <= AMOUNT_FEN_MAX:
        raise bad_body(f"amount_fen must be between 0 and {AMOUNT_FEN_MAX}")


def _check_names(order_id: str, sale: str, buyer: str) -> None:
    try:
        for what, value in (("order_id", order_id), ("sale", sale), ("buyer", buyer)):
            require_identifier(what, value)
    except ValueError as error:
        raise bad_body(str(error)) from error
