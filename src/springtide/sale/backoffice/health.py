"""What anybody may ask: whether the service lives, whether it is ready, and its figures."""

import asyncio

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from springtide.sale.backoffice.office import TheOffice
from springtide.sale.backoffice.schemas import HealthOut

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> HealthOut:
    """Alive: it answers."""
    return HealthOut(status="ok")


@router.get("/readyz")
async def readyz(office: TheOffice) -> HealthOut:
    """Ready: both engines answer."""
    await asyncio.gather(office.inventory.sales(), office.ledger.token_ring())
    return HealthOut(status="ok")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "For Prometheus."}},
)
async def metrics(request: Request) -> Response:
    """The figures of this process."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
