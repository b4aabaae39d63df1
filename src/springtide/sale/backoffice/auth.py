"""Who may do what: `Authorization: Bearer sk_…`, and a role that every route of the API states.

A route that states none cannot be made, and the key is checked before anything of the body is read.
"""

from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from typing_extensions import override

from springtide.model import ApiKey, Role
from springtide.sale.api_keys import may
from springtide.sale.backoffice.office import office_of
from springtide.sale.backoffice.problems import ProblemError

ROLE_FIELD = "x-role"
"""Where an operation's description states the role that it needs."""

_log = structlog.get_logger(__name__)


def needs(role: Role) -> dict[str, Any]:
    """For the description of a route: the role that it needs."""
    return {ROLE_FIELD: role.value}


class GuardedRoute(APIRoute):
    """A route that is closed without a key of its role."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        role = Role((self.openapi_extra or {})[ROLE_FIELD])

        async def guarded(request: Request) -> Response:
            key = await _admit(request, role)
            response = await handler(request)
            if request.method != "GET":
                _log.info(
                    "merchant_call",
                    key=key.key_id,
                    method=request.method,
                    path=request.url.path,
                    status=response.status_code,
                )
            return response

        return guarded


def guarded_router(tag: str) -> APIRouter:
    """A router all of whose routes are guarded."""
    return APIRouter(prefix="/v1", tags=[tag], route_class=GuardedRoute)


async def _admit(request: Request, role: Role) -> ApiKey:
    given = request.headers.getlist("authorization")
    scheme, _, secret = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    key = None
    if scheme.lower() == "bearer" and secret:
        key = await office_of(request).keys.check(secret.strip())
    if key is None:
        detail = "send one header Authorization: Bearer with a key of this API that is not revoked"
        raise ProblemError(401, "unauthorized", "No valid API key", detail, {"WWW-Authenticate": "Bearer"})
    if not may(key.role, role):
        detail = f"this needs a key of the role {role.value}; {key.key_id} is of the role {key.role.value}"
        raise ProblemError(403, "role_too_low", "The key's role does not allow this", detail)
    return key
