"""Refusals of the back office: `application/problem+json` (RFC 9457), each with a stable `code`."""

from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from springtide.errors import InventoryError, LedgerError
from springtide.sale.merchant import MerchantError, Refusal

RETRY_AFTER_S = 1
MISTAKES_MAX = 20
"""Mistakes of one request that are named."""

_MEDIA = "application/problem+json"
_STATUS: dict[Refusal, int] = {
    Refusal.BAD_SALE: 422,
    Refusal.KEY_REUSED: 422,
    Refusal.REVISION_DIFFERS: 412,
    Refusal.UNKNOWN_KEY: 404,
    Refusal.UNKNOWN_ORDER: 404,
    Refusal.UNKNOWN_REFUND: 404,
    Refusal.UNKNOWN_SALE: 404,
    Refusal.UNKNOWN_SKU: 404,
}
"""All others are conflicts with the state of things: 409."""

_log = structlog.get_logger(__name__)


class ProblemError(HTTPException):
    """A refusal, to be raised anywhere in a request, also while its body is read."""

    def __init__(self, status: int, code: str, title: str, detail: str, headers: dict[str, str] | None = None) -> None:
        """The detail says what to do; the code is for programs."""
        super().__init__(status, detail, headers)
        self.code = code
        self.title = title


def bad_body(detail: str) -> ProblemError:
    """The body cannot be used."""
    return ProblemError(400, "bad_body", "Bad body", detail)


def unknown_order(order_id: str) -> ProblemError:
    """There is no such order, or it belongs to somebody else."""
    detail = f"there is no order {order_id} of this sale and buyer"
    return ProblemError(404, "unknown_order", "No such order", detail)


def problem(error: ProblemError, **more: object) -> Response:
    """The answer to a refusal; further members may follow."""
    content = {
        "type": f"urn:springtide:problem:{error.code}",
        "title": error.title,
        "status": error.status_code,
        "detail": error.detail,
        "code": error.code,
        **more,
    }
    return Response(msgspec.json.encode(content), error.status_code, error.headers, _MEDIA)


def answer_with_problems(app: FastAPI) -> None:
    """Let every failure of this application be answered as a problem."""
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(MerchantError, _answer_refusal)
    app.add_exception_handler(LedgerError, _answer_unavailable)
    app.add_exception_handler(InventoryError, _answer_unavailable)
    app.add_exception_handler(Exception, _answer_fault)


async def _answer_http(_: Request, error: Exception) -> Response:
    """Our own refusals, and errors of the framework itself: no such path, no such method."""
    if isinstance(error, ProblemError):
        return problem(error)
    if not isinstance(error, HTTPException):
        raise error
    title = str(error.detail)
    detail = f"{title}: /openapi.json describes what there is"
    headers = dict(error.headers or {})
    return problem(ProblemError(error.status_code, title.lower().replace(" ", "_"), title, detail, headers))


async def _answer_invalid(_: Request, error: Exception) -> Response:
    """What does not fit the schema. The values themselves are not repeated: they may be secrets, or not be text."""
    if not isinstance(error, RequestValidationError):
        raise error
    mistakes = error.errors()[:MISTAKES_MAX]
    if any(mistake["type"] == "json_invalid" for mistake in mistakes):
        return problem(bad_body("the body is not valid JSON"))
    fields = [{"field": _place(mistake["loc"]), "message": str(mistake["msg"])} for mistake in mistakes]
    detail = "; ".join(f"{one['field']}: {one['message']}" for one in fields)
    return problem(ProblemError(422, "invalid", "Not as the schema says", _printable(detail)), errors=_clean(fields))


async def _answer_refusal(_: Request, error: Exception) -> Response:
    if not isinstance(error, MerchantError):
        raise error
    code = error.refusal.value
    title = code.replace("_", " ").capitalize()
    return problem(ProblemError(_STATUS.get(error.refusal, 409), code, title, str(error)))


async def _answer_unavailable(_: Request, error: Exception) -> Response:
    detail = f"{error}; repeating this request is safe"
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return problem(ProblemError(503, "unavailable", "Unavailable", detail, headers))


async def _answer_fault(request: Request, error: Exception) -> Response:
    """A fault of ours: the traceback is for the log."""
    _log.error("request_failed", method=request.method, path=request.url.path, exc_info=error)
    return problem(ProblemError(500, "internal", "Internal error", "the request failed inside the server"))


def _place(location: Sequence[Any]) -> str:
    """`body.skus.0.stock` → `skus.0.stock`: where the mistake is, in the words of whoever made it."""
    parts = [str(part) for part in location]
    return ".".join(parts[1:]) or parts[0] if parts else "request"


def _printable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _clean(fields: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: _printable(text) for name, text in one.items()} for one in fields]
