"""`springtide run recorder | backoffice | paypage | crowd`: the processes behind and in front of the counters."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import msgspec
import uvicorn
from fastapi import FastAPI
from typing_extensions import override

from springtide.cli.inventories import open_inventory, open_rooms
from springtide.cli.roles import RoleSettings, read_settings, work_until_stopped
from springtide.cli.roles import announce as write_announcement
from springtide.decide.room import policy_of
from springtide.drivers.postgres import PostgresLedger
from springtide.drivers.system import SystemClock, SystemIds, chance
from springtide.drivers.valkey import ValkeyInventory
from springtide.model import Payment
from springtide.sale import webhook
from springtide.sale.backoffice import create_app, merchant_api
from springtide.sale.payments import Payments
from springtide.sale.recorder import Recorder, Share
from springtide.sale.room_keeper import RoomKeeper
from springtide.twin.crowd.generator import run_crowd
from springtide.twin.crowd.spec import read_spec
from springtide.twin.pay_page import create_pay_page

ANNOUNCE_TIMEOUT_S = 20.0
PAYMENT_S = 10.0
STOP_S = 5
"""Requests that are under way when the back office is stopped have this long."""

CONSUMER = "recorder"
"""Stable, so that a restarted recorder finds its own unacknowledged entries at once; one recorder per bucket."""


async def run_recorder(settings_path: Path, share: str) -> int:
    """Record the journal until SIGTERM: all of it, or with `I/N` this recorder's share of the buckets."""
    settings = read_settings(settings_path)
    clock = SystemClock()
    part = Share.of(share)
    consumer = CONSUMER if part == Share() else f"{CONSUMER}-{part.index}-of-{part.count}"
    async with _ports(settings, clock) as (inventory, ledger):
        recorder = Recorder(inventory, ledger, clock, consumer, share=part)
        await work_until_stopped(recorder.run, recorder.stop)
    return 0


@contextlib.asynccontextmanager
async def _ports(settings: RoleSettings, clock: SystemClock) -> AsyncIterator[tuple[ValkeyInventory, PostgresLedger]]:
    inventory = await open_inventory(
        settings.inventory, clock, replicas_acked=settings.replicas_acked, library=settings.functions()
    )
    ledger = await PostgresLedger.connect(settings.ledger_dsn, clock)
    try:
        yield inventory, ledger
    finally:
        await ledger.close()
        await inventory.close()


async def run_backoffice(settings_path: Path, announce: Path) -> int:
    """Serve the back office until SIGTERM."""
    settings = read_settings(settings_path)
    clock, ids = SystemClock(), SystemIds()
    async with _ports(settings, clock) as (inventory, ledger):
        rooms = await open_rooms(settings.inventory, clock)
        try:
            keeper = RoomKeeper(inventory, rooms, ledger, clock, ids, policy_of(settings.room))
            api = merchant_api(inventory, ledger, clock, ids, bytes.fromhex(settings.token_master))
            application = create_app(
                Payments(inventory, ledger, clock),
                inventory,
                ledger,
                bytes.fromhex(settings.webhook_secret),
                dataclasses.replace(api, rooms=keeper),
            )
            return await serve_until_stopped(
                application, (settings.bind_host, settings.backoffice_port), announce, clock
            )
        finally:
            await rooms.close()


async def run_paypage(settings_path: Path, backoffice: str, announce: Path) -> int:
    """Serve the page to try payments with until SIGTERM."""
    settings = read_settings(settings_path)
    clock = SystemClock()
    secret = bytes.fromhex(settings.webhook_secret)
    ledger = await PostgresLedger.connect(settings.ledger_dsn, clock)
    async with httpx.AsyncClient(base_url=backoffice, timeout=PAYMENT_S, trust_env=False) as client:

        async def report(payment: Payment) -> str:
            body = msgspec.json.encode(payment)
            headers = {webhook.SIGNATURE_HEADER: webhook.sign(secret, body), "Content-Type": "application/json"}
            try:
                answer = await client.post("/v1/payments", content=body, headers=headers)
                said = answer.json()
            except (httpx.HTTPError, ValueError):
                return "the back office did not answer"
            return str(said.get("outcome") or said.get("detail") or answer.status_code)

        application = create_pay_page(ledger, report)
        try:
            return await serve_until_stopped(application, (settings.bind_host, 0), announce, clock)
        finally:
            await ledger.close()


async def serve_until_stopped(
    application: FastAPI, address: tuple[str, int], announce: Path, clock: SystemClock
) -> int:
    """Serve and announce the port; 1 when it could not start."""
    server = _Server(
        uvicorn.Config(
            application,
            host=address[0],
            port=address[1],
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_S,
        )
    )

    def stop() -> None:
        server.should_exit = True

    serving = asyncio.create_task(work_until_stopped(server.serve, stop))
    async with clock.timeout(ANNOUNCE_TIMEOUT_S):
        while not server.started and not serving.done():
            await clock.sleep(0.02)
    if server.started:
        write_announcement(announce, server.servers[0].sockets[0].getsockname()[1])
    await serving
    return 0 if server.started else 1


class _Server(uvicorn.Server):
    """Leaves the signals to us: uvicorn would raise them once more when it has stopped, while we are tidying up."""

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run_crowd_role(spec_path: Path) -> int:
    """Send the demand of the file and leave the logs beside the report."""
    await run_crowd(read_spec(spec_path), SystemClock(), SystemIds(), chance)
    return 0
