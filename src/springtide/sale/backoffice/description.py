"""The OpenAPI document: what FastAPI finds, with the roles as security and every refusal as a problem."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from springtide.sale.backoffice.auth import ROLE_FIELD

_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
_REFUSED = {
    "description": "Refused; `code` says why, `detail` what to do. A 503 has a Retry-After header.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The document of this application."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = _PROBLEM
    components["securitySchemes"] = {
        "ApiKey": {"type": "http", "scheme": "bearer", "description": "`sk_…`; the role is that of `x-role`, or above."}
    }
    for path in document["paths"].values():
        for operation in path.values():
            _complete(operation)
    return document


def operation_id(route: APIRoute) -> str:
    """The function's name: all differ."""
    return route.name


def _complete(operation: dict[str, Any]) -> None:
    if ROLE_FIELD in operation:
        operation["security"] = [{"ApiKey": [operation[ROLE_FIELD]]}]
    responses = operation["responses"]
    responses.pop("422", None)
    responses["default"] = _REFUSED
