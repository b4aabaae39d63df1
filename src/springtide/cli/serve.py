"""`springtide serve`: the order path on this machine for as long as it is wanted, on data that stays.

Engines, recorder and back office are supervised; the control loop keeps the counters behind the balancer, as many as
the demand needs and the configuration allows.
"""

import asyncio
import contextlib
import fcntl
import sys
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from springtide.cli.clouds import open_for_replicas
from springtide.cli.examples import example
from springtide.cli.roles import RoleSettings
from springtide.cli.stores import Given, Places, Stores, all_started, start_stores
from springtide.cli.supervisor import Supervisor, starts
from springtide.cli.world import (
    Folders,
    make_runtime,
    read_announced_port,
    role,
    settings_file,
    start_workers,
    stop_loop,
)
from springtide.config import Config, load_sale
from springtide.drivers.embedded_envoy import EmbeddedEnvoy, start_envoy
from springtide.drivers.private_file import write_private
from springtide.drivers.run_folder import make_run_folder, release
from springtide.drivers.system import SystemClock, SystemIds
from springtide.errors import ConfigError, UserError
from springtide.fleet.journal import Journal
from springtide.fleet.loop import ControlLoop, LoopSettings
from springtide.fleet.ports import one_service
from springtide.model import Role, Sale, TokenRing
from springtide.sale.api_keys import KeyBook
from springtide.sale.tokens import keys_of

STOP_S = 10.0
TRIAL_BUYER = "ada"
TRIAL_S = 86_400
"""Who the links with `--try-payments` are for, and how long they are good."""


@dataclass(frozen=True)
class ServeOptions:
    """What the command line asks for. A port of 0 takes a free one."""

    config: Path | None
    data: Path
    port: int
    backoffice_port: int
    try_payments: bool
    given: Given


class Secrets(msgspec.Struct, frozen=True):
    """What must stay the same over restarts, in hexadecimal; `owner_key` is the first key of the merchant's API."""

    token_master: str
    webhook_secret: str
    owner_key: str = ""


@dataclass(frozen=True)
class Started:
    """What runs."""

    settings: Path
    stores: Stores
    envoy: EmbeddedEnvoy
    backoffice_url: str
    master: bytes
    ring: TokenRing


async def run_serve(options: ServeOptions, environ: Mapping[str, str]) -> int:
    """Serve until SIGTERM or Ctrl-C. Raises UserError when the folder is in use or the configuration is wrong."""
    config = load_sale(options.config or example("shop.toml"), environ)
    folders = _folders(options.data)
    clock = SystemClock()
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(folders.log("loop").open("a")))
    async with AsyncExitStack() as stack:
        stack.enter_context(_locked(options.data))
        stack.callback(release, folders.run)
        started = await _start(stack, options, config, folders, clock)
        await _fleet(stack, config, folders, clock, started)
        page = await _try_payments(stack, folders, clock, started) if options.try_payments else ""
        sales = await open_shop(config, clock, started.stores, page)
        _tell(options, started, sales, clock.now_ms() // 1000)
        await asyncio.Event().wait()
    return 0


def _folders(data: Path) -> Folders:
    try:
        for folder in (data, data / "logs", data / "valkey", data / "postgres"):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{data}: cannot be written: {error.strerror}; give a folder of your own with --data"
        ) from error
    return Folders(out=data, run=make_run_folder())


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    """Hold the folder: two servers on one would destroy its data."""
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{data}: another springtide serves from here; end it or give another --data") from None
        yield


def server_secrets(data: Path, ids: SystemIds) -> Secrets:
    path = data / "secrets.json"
    if path.exists():
        try:
            return msgspec.json.decode(path.read_bytes(), type=Secrets)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}: not what was written there: {error}; restore it from a backup") from error
    secrets = Secrets(ids.secret().hex(), ids.secret().hex())
    write_private(path, secrets)
    return secrets


async def _start(
    stack: AsyncExitStack, options: ServeOptions, config: Config, folders: Folders, clock: SystemClock
) -> Started:
    """Engines, recorder and back office."""
    envoy_folder = folders.run / "envoy"
    envoy_folder.mkdir()

    async def envoy() -> EmbeddedEnvoy:
        engine = await start_envoy(envoy_folder, clock, listen_port=options.port)
        stack.push_async_callback(engine.stop)
        return engine

    places = Places(folders.out / "valkey", folders.out / "postgres")
    stores, balancer = await all_started(start_stores(stack, clock, options.given, places, config.inventory), envoy())
    secrets = await with_owner(server_secrets(folders.out, SystemIds()), folders.out, stores, clock)
    settings = RoleSettings(
        inventory=stores.address,
        replicas_acked=config.inventory.replicas_acked,
        room=config.room,
        ledger_dsn=stores.ledger_dsn,
        token_master=secrets.token_master,
        webhook_secret=secrets.webhook_secret,
        counter=config.counter,
        rate_max=config.counter.rate_max,
        backoffice_port=options.backoffice_port,
    )
    path = settings_file(folders, "settings", settings)
    workers = await start_workers(stack, folders, clock, path)
    ring = await stores.ledger.token_ring()
    master = bytes.fromhex(secrets.token_master)
    return Started(path, stores, balancer, workers.backoffice_url(), master, ring)


async def with_owner(secrets: Secrets, data: Path, stores: Stores, clock: SystemClock) -> Secrets:
    """Make the first key of the merchant's API, once."""
    if secrets.owner_key:
        return secrets
    made = await KeyBook(stores.ledger, clock, SystemIds()).create("first owner", Role.OWNER)
    secrets = msgspec.structs.replace(secrets, owner_key=made.secret)
    write_private(data / "secrets.json", secrets)
    owner = data / "owner.key"
    owner.touch(mode=0o600)
    owner.write_text(f"{made.secret}\n")
    return secrets


async def _fleet(stack: AsyncExitStack, config: Config, folders: Folders, clock: SystemClock, started: Started) -> None:
    """The control loop and its counters."""
    runtime = await make_runtime(folders, clock, started.settings)
    stack.push_async_callback(runtime.close)
    cloud = open_for_replicas(config, clock, folders.run)
    stack.push_async_callback(cloud.close)
    settings = LoopSettings(
        run_id=SystemIds().new("")[:8],
        zones=config.fleet_zones(),
        policy=config.policy(),
        calendar=config.calendar_from(clock.now_ms()),
        tick_ms=config.fleet.tick_ms,
    )
    loop = ControlLoop(
        clock,
        one_service(started.envoy.balancer, runtime, cloud, config.fleet_zones(), started.stores.loads(clock)),
        settings,
        Journal(folders.out / "journal.jsonl"),
    )
    ticking = asyncio.create_task(loop.run())

    stack.push_async_callback(stop_loop, loop, ticking)


async def _try_payments(stack: AsyncExitStack, folders: Folders, clock: SystemClock, started: Started) -> str:
    """Start the page to try payments with; the pattern of its addresses."""
    announce = folders.run / "paypage.json"
    arguments = ("--announce", str(announce), "--backoffice", started.backoffice_url)
    page = Supervisor("paypage", starts(role(folders, "paypage", started.settings, *arguments)), clock)
    await page.start()
    stack.push_async_callback(page.stop, STOP_S)
    port = await read_announced_port(page.child, announce, clock)
    return f"http://127.0.0.1:{port}/pay/{{sale}}/{{order_id}}"


async def open_shop(config: Config, clock: SystemClock, stores: Stores, pay_url: str) -> list[Sale]:
    """Publish the configuration's sales that are not there yet; all of them as they are in the inventory."""
    found = []
    for sale in config.sales_from(clock.now_ms()):
        new = msgspec.structs.replace(sale, pay_url=sale.pay_url or pay_url)
        await stores.ledger.publish(new)
        await stores.inventory.publish(new)
        view = await stores.inventory.view(sale.sale)
        found.append(view.sale if view is not None else new)
    return found


def _tell(options: ServeOptions, started: Started, sales: list[Sale], now_s: int) -> None:
    """Where everything is. The process's own standard output, for a person."""
    shop, owner = f"http://127.0.0.1:{started.envoy.port}", options.data / "owner.key"
    lines = [
        f"back office  {started.backoffice_url}/openapi.json",
        f"             its first key is in {owner}; list the sales with",
        f"             springtide sale list --url {started.backoffice_url} --key-file {owner}",
        f"shop         {shop}",
    ]
    for sale in sales:
        link = f"{shop}/s/{sale.sale}"
        if options.try_payments:
            token = keys_of(started.master, started.ring).sign(TRIAL_BUYER, sale.sale, now_s + TRIAL_S)
            link += f"#token={token}"
        lines += [f"  {sale.title}", f"             {link}"]
    if options.try_payments:
        lines.append(
            f"             (links for a buyer called {TRIAL_BUYER}, and payments that cost nothing: to try it only)"
        )
    sys.stdout.write("\n".join((*lines, "Ctrl-C ends it; the data stays.")) + "\n")
    sys.stdout.flush()
