"""What a run consists of, started in order and ended in reverse: engines, workers, replicas, the rented nodes."""

import asyncio
import contextlib
import shutil
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import msgspec

from springtide.cli.roles import RoleSettings
from springtide.cli.stores import Given, Places, Stores, all_started, start_stores
from springtide.cli.supervisor import Supervisor, starts
from springtide.config import Config, CounterSettings
from springtide.drivers.child import Child, spawn
from springtide.drivers.embedded_envoy import EmbeddedEnvoy, start_envoy
from springtide.drivers.embedded_postgres import remove_segment
from springtide.drivers.netns import Namespace
from springtide.drivers.postgres import PostgresLedger
from springtide.drivers.private_file import write_private
from springtide.drivers.process import ProcessRuntime
from springtide.drivers.run_folder import make_run_folder, sweep
from springtide.drivers.system import SystemClock, SystemIds
from springtide.drivers.valkey import ValkeyInventory
from springtide.errors import ConfigError
from springtide.fleet.loop import ControlLoop
from springtide.model import COUNTER, ServiceSpec

ROLE_STOP_S = 5.0
LOOP_STOP_S = 10.0
ANNOUNCE_S = 20.0
POLL_S = 0.05


@dataclass(frozen=True)
class Folders:
    """`out` keeps the report and the logs; `run` holds engine data and secrets and is removed at the end."""

    out: Path
    run: Path

    def log(self, name: str) -> Path:
        """The log file of one process."""
        return self.out / "logs" / f"{name}.log"


@dataclass(frozen=True)
class Engines:
    """The stores and the load balancer."""

    stores: Stores
    envoy: EmbeddedEnvoy

    @property
    def inventory(self) -> ValkeyInventory:
        """Our connection to Valkey."""
        return self.stores.inventory

    @property
    def ledger(self) -> PostgresLedger:
        """Our connections to PostgreSQL."""
        return self.stores.ledger


def prepare_folders(out: Path) -> Folders:
    """Make the folders, emptying what an earlier run left in `out`. Raises ConfigError when we may not write there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out / "logs", ignore_errors=True)
        (out / "logs").mkdir()
        for old in (*out.glob("*.jsonl*"), *out.glob("*.json"), *out.glob("*.html")):
            old.unlink()
    except OSError as error:
        msg = f"{out}: cannot be written: {error.strerror}; give a folder of your own with --out"
        raise ConfigError(msg) from error
    sweep(remove_segment)
    return Folders(out=out, run=make_run_folder())


def command(role: str, *arguments: str) -> list[str]:
    """The command line of one of our own processes."""
    return [sys.executable, "-m", "springtide.cli", "run", role, *arguments]


async def start_engines(
    stack: AsyncExitStack, folders: Folders, clock: SystemClock, config: Config, given: Given, port: int
) -> Engines:
    """Start Valkey, PostgreSQL and Envoy at the same time, and connect to them. Raises EngineError."""
    valkey_folder, envoy_folder = folders.run / "valkey", folders.run / "envoy"
    valkey_folder.mkdir()
    envoy_folder.mkdir()

    async def envoy() -> EmbeddedEnvoy:
        engine = await start_envoy(envoy_folder, clock, listen_port=port)
        stack.push_async_callback(engine.stop)
        return engine

    settings = config.inventory
    stores = start_stores(stack, clock, given, Places(valkey_folder), settings)
    return Engines(*await all_started(stores, envoy()))


def make_settings(counter: CounterSettings, rate_max: float | None, stores: Stores, ids: SystemIds) -> RoleSettings:
    """The settings of every role of this run, with fresh keys."""
    return RoleSettings(
        inventory=stores.address,
        ledger_dsn=stores.ledger_dsn,
        token_master=ids.secret().hex(),
        webhook_secret=ids.secret().hex(),
        counter=counter,
        rate_max=rate_max,
        replicas_acked=stores.replicas_acked,
    )


async def make_runtime(folders: Folders, clock: SystemClock, settings: Path) -> ProcessRuntime:
    """Counters as local processes."""
    runtime = ProcessRuntime(folders.run / "replicas", clock)
    await runtime.define(counter_service(settings))
    return runtime


def counter_service(settings: Path, revision: str = "") -> ServiceSpec:
    """The counter as a service of local processes."""
    arguments = ["--settings", str(settings), "--replica-id", "{replica_id}", "--announce", "{announce}"]
    return ServiceSpec(
        name=COUNTER,
        revision=revision,
        command=tuple(command("counter", *arguments)),
        drain_signal="SIGUSR1",
    )


async def start_workers(stack: AsyncExitStack, folders: Folders, clock: SystemClock, settings: Path) -> "Workers":
    """Start the recorder and the back office, supervised, and wait until the back office listens."""
    announce = folders.run / "backoffice.json"

    recorder = role(folders, "recorder", settings)
    backoffice = role(folders, "backoffice", settings, "--announce", str(announce))
    workers = Workers(
        Supervisor("recorder", starts(recorder), clock), Supervisor("backoffice", starts(backoffice), clock), announce
    )
    for supervisor in (workers.recorder, workers.backoffice):
        await supervisor.start()
        stack.push_async_callback(supervisor.stop, ROLE_STOP_S)
    await read_announced_port(workers.backoffice.child, announce, clock)
    return workers


def role(
    folders: Folders, name: str, settings: Path, *arguments: str, kind: str = "", node: Namespace | None = None
) -> Callable[[], Child]:
    """What starts one of our processes, as often as it is called; `kind` is its role where that is not its name."""
    words = command(kind or name, "--settings", str(settings), *arguments)

    def start() -> Child:
        with node.entered() if node else nullcontext():
            return spawn(name, words, folders.log(name))

    return start


async def read_announced_port(child: Child, path: Path, clock: SystemClock) -> int:
    """Wait until the process has announced its port. Raises EngineError when it ends or takes over ANNOUNCE_S."""
    until = clock.monotonic_s() + ANNOUNCE_S
    while (port := announced_port(path, child.pid)) is None:
        if clock.monotonic_s() > until or child.returncode is not None:
            raise child.failure("did not start")
        await clock.sleep(POLL_S)
    return port


def announced_port(path: Path, pid: int) -> int | None:
    """What the process with this pid has announced; None when it has not yet. The file is renamed into place."""
    if not path.exists():
        return None
    said: dict[str, int] = msgspec.json.decode(path.read_bytes())
    return said["port"] if said["pid"] == pid else None


@dataclass(frozen=True)
class Workers:
    """The supervised processes beside the counters."""

    recorder: Supervisor
    backoffice: Supervisor
    announce: Path

    def backoffice_url(self) -> str:
        """Where payments go."""
        port = announced_port(self.announce, self.backoffice.child.pid)
        return f"http://127.0.0.1:{port}"


def settings_file(folders: Folders, name: str, settings: RoleSettings) -> Path:
    """Write settings where only we can read them."""
    path = folders.run / f"{name}.json"
    write_private(path, settings)
    return path


async def stop_loop(loop: ControlLoop, ticking: "asyncio.Task[None]") -> None:
    """Let the control loop finish what it began and give the rented nodes back."""
    await loop.shutdown(LOOP_STOP_S)
    await loop.give_back(LOOP_STOP_S)
    await cancelled(ticking)


async def cancelled(task: "asyncio.Task[None]") -> None:
    """End a background task; a fault of its own still counts."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
