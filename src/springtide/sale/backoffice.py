"""The merchant's side over HTTP: the payment provider's webhook, cancellation, health and figures.

Bodies are signed as `webhook.py` says, and the signature is checked before a body is read as JSON. A
cancellation names its order in the signed body as well as in the path: no other call's signature serves for
it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from typing_extensions import override

from springtide.errors import InventoryError, LedgerError
from springtide.model import IDEMPOTENCY_KEY, Payment, PaymentOutcome, require_identifier
from springtide.ports import Inventory, Ledger
from springtide.sale.payments import Payments
from springtide.sale.webhook import SIGNATURE_HEADER, verify

BODY_BYTES_MAX = 16_384
"""The longest body that is read."""

AMOUNT_FEN_MAX = 2**53
"""The largest amount that every JSON reader keeps exact (RFC 8259, section 6)."""

RETRY_AFTER_S = 1

_T = TypeVar("_T")


class CancelRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a cancellation. `sale` and `buyer` find an order that the ledger does not have yet."""

    order_id: str
    sale: str
    buyer: str


class _ProblemError(Exception):
    def __init__(self, status: int, code: str, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.title = title


def create_app(payments: Payments, inventory: Inventory, ledger: Ledger, webhook_secret: bytes) -> FastAPI:
    """The application; while it is up, orders expire and stock is given back (`Payments.run`)."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(payments.run())
        try:
            yield
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    app = FastAPI(title="Springtide back office", lifespan=lifespan)
    app.add_exception_handler(_ProblemError, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(LedgerError, _answer_unavailable)
    app.add_exception_handler(InventoryError, _answer_unavailable)
    registry = CollectorRegistry()
    registry.register(_Figures(payments))

    @app.post("/v1/payments")
    async def pay(request: Request) -> Response:
        payment = _decode(await _signed_body(request, webhook_secret), Payment)
        _check_payment(payment)
        outcome = await payments.pay(payment)
        if outcome is PaymentOutcome.UNKNOWN_ORDER:
            raise _unknown_order(payment.order_id)
        return _json(200, {"outcome": outcome.value})

    @app.post("/v1/orders/{order_id}/cancel")
    async def cancel(order_id: str, request: Request) -> Response:
        wanted = _decode(await _signed_body(request, webhook_secret), CancelRequest)
        _check_names(order_id, wanted.sale, wanted.buyer)
        if wanted.order_id != order_id:
            raise _bad_body(f"the body cancels {wanted.order_id}, the path {order_id}")
        state = await payments.cancel(order_id, wanted.sale, wanted.buyer)
        if state is None:
            raise _unknown_order(order_id)
        return _json(200, {"order_id": order_id, "state": state.value})

    @app.get("/healthz")
    async def healthz() -> Response:
        """Healthy while both engines answer."""
        for name in await inventory.sales():
            await ledger.positions(name)
        return _json(200, {"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _signed_body(request: Request, secret: bytes) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            detail = f"send at most {BODY_BYTES_MAX} bytes"
            raise _ProblemError(413, "content_too_large", "Body too large", detail)
    if not verify(secret, bytes(body), request.headers.get(SIGNATURE_HEADER, "")):
        detail = f"send {SIGNATURE_HEADER} with the HMAC-SHA256 of the body, in hexadecimal"
        raise _ProblemError(401, "bad_signature", "No valid signature", detail)
    return bytes(body)


def _decode(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad_body(str(error)) from error


def _check_payment(payment: Payment) -> None:
    _check_names(payment.order_id, payment.sale, payment.buyer)
    if not IDEMPOTENCY_KEY.fullmatch(payment.payment_id):
        raise _bad_body("payment_id must be 1 to 64 letters, digits, '_', '.', ':' or '-'")
    if not 0 <= payment.amount_fen <= AMOUNT_FEN_MAX:
        raise _bad_body(f"amount_fen must be between 0 and {AMOUNT_FEN_MAX}")


def _check_names(order_id: str, sale: str, buyer: str) -> None:
    try:
        for what, value in (("order_id", order_id), ("sale", sale), ("buyer", buyer)):
            require_identifier(what, value)
    except ValueError as error:
        raise _bad_body(str(error)) from error


def _bad_body(detail: str) -> _ProblemError:
    return _ProblemError(400, "bad_body", "Bad body", detail)


def _unknown_order(order_id: str) -> _ProblemError:
    detail = f"there is no order {order_id} of this sale and buyer"
    return _ProblemError(404, "unknown_order", "No such order", detail)


def _json(status: int, content: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _problem(status: int, code: str, title: str, detail: str) -> Response:
    content = {
        "type": f"urn:springtide:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
    }
    return Response(msgspec.json.encode(content), status, media_type="application/problem+json")


async def _answer_problem(_: Request, error: Exception) -> Response:
    if not isinstance(error, _ProblemError):
        raise error
    return _problem(error.status, error.code, error.title, str(error))


async def _answer_http(_: Request, error: Exception) -> Response:
    """Errors of the framework itself: no such path, no such method."""
    if not isinstance(error, HTTPException):
        raise error
    code = error.detail.lower().replace(" ", "_")
    answer = _problem(error.status_code, code, error.detail, f"{error.detail}: see the API's description at /docs")
    answer.headers.update(error.headers or {})
    return answer


async def _answer_unavailable(_: Request, error: Exception) -> Response:
    answer = _problem(503, "unavailable", "Unavailable", f"{error}; repeating this request is safe")
    answer.headers["Retry-After"] = str(RETRY_AFTER_S)
    return answer


class _Figures(Collector):
    """The figures of `Payments`, read when somebody asks."""

    def __init__(self, payments: Payments) -> None:
        self._payments = payments

    @override
    def collect(self) -> Iterable[Metric]:
        figures = self._payments.figures
        outcomes = CounterMetricFamily("springtide_payments", "Payments by outcome.", labels=["outcome"])
        for outcome in PaymentOutcome:
            outcomes.add_metric([outcome.value], figures.outcomes.get(outcome.value, 0))
        yield outcomes
        yield CounterMetricFamily("springtide_cancelled_orders", "Cancellations.", figures.cancelled)
        yield CounterMetricFamily("springtide_expired_orders", "Orders that expired unpaid.", figures.expired)
        yield CounterMetricFamily("springtide_stock_returns", "Orders whose stock went back.", figures.returned)
        yield CounterMetricFamily("springtide_payment_failures", "Calls that an engine failed.", figures.failures)
        yield GaugeMetricFamily("springtide_expiry_on_hold", "1 while expiry waits.", bool(figures.holding))
