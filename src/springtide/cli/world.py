"""What a run consists of, started in order and ended in reverse: engines, workers, replicas, the rented nodes."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from springtide.cli.roles import RoleSettings
from springtide.cli.supervisor import Supervisor
from springtide.config import Config
from springtide.drivers.child import Child, spawn
from springtide.drivers.embedded_envoy import EmbeddedEnvoy, start_envoy
from springtide.drivers.embedded_postgres import EmbeddedPostgres, start_postgres
from springtide.drivers.embedded_valkey import EmbeddedValkey, start_valkey
from springtide.drivers.localcloud import LocalCloud
from springtide.drivers.postgres import PostgresLedger, migrate
from springtide.drivers.private_file import write_private
from springtide.drivers.process import ProcessRuntime
from springtide.drivers.system import SystemClock, SystemIds, chance
from springtide.drivers.valkey import ValkeyInventory
from springtide.errors import ConfigError
from springtide.model import ReplicaSpec, Zone

ROLE_STOP_S = 5.0
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
    """The three embedded engines and the drivers connected to them."""

    valkey: EmbeddedValkey
    postgres: EmbeddedPostgres
    envoy: EmbeddedEnvoy
    inventory: ValkeyInventory
    ledger: PostgresLedger


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
    return Folders(out=out, run=Path(tempfile.mkdtemp(prefix="springtide-")))


def command(role: str, *arguments: str) -> list[str]:
    """The command line of one of our own processes."""
    return [sys.executable, "-m", "springtide.cli", "run", role, *arguments]


async def start_engines(stack: AsyncExitStack, folders: Folders, clock: SystemClock, port: int) -> Engines:
    """Start Valkey, PostgreSQL and Envoy at the same time, and connect to them. Raises EngineError."""
    valkey_folder, envoy_folder = folders.run / "valkey", folders.run / "envoy"
    valkey_folder.mkdir()
    envoy_folder.mkdir()

    async def valkey() -> EmbeddedValkey:
        engine = await start_valkey(valkey_folder, clock)
        stack.push_async_callback(engine.stop)
        return engine

    async def postgres() -> EmbeddedPostgres:
        engine = await start_postgres(clock)
        stack.push_async_callback(engine.stop)
        return engine

    async def envoy() -> EmbeddedEnvoy:
        engine = await start_envoy(envoy_folder, clock, listen_port=port)
        stack.push_async_callback(engine.stop)
        return engine

    starting = asyncio.create_task(valkey()), asyncio.create_task(postgres()), asyncio.create_task(envoy())
    try:
        await asyncio.wait(starting)
    finally:
        # Also after Ctrl-C: an engine that is half started is started whole, so that it is on the stack and is ended.
        await asyncio.wait(starting)
    for error in [task.exception() for task in starting]:
        if error is not None:
            raise error
    started_valkey, started_postgres, started_envoy = (starting[0].result(), starting[1].result(), starting[2].result())
    inventory = await ValkeyInventory.connect(started_valkey.host, started_valkey.port, clock)
    stack.push_async_callback(inventory.close)
    await migrate(started_postgres.dsn)
    ledger = await PostgresLedger.connect(started_postgres.dsn, clock)
    stack.push_async_callback(ledger.close)
    return Engines(started_valkey, started_postgres, started_envoy, inventory, ledger)


def make_settings(config: Config, engines: Engines, ids: SystemIds) -> RoleSettings:
    """The settings of every role of this run, with fresh keys."""
    return RoleSettings(
        inventory_host=engines.valkey.host,
        inventory_port=engines.valkey.port,
        ledger_dsn=engines.postgres.dsn,
        token_key=ids.secret().hex(),
        webhook_secret=ids.secret().hex(),
        counter=config.counter,
        rate_max=config.counter.rate_max,
    )


def make_runtime(folders: Folders, clock: SystemClock, settings: Path) -> ProcessRuntime:
    """Replicas as local processes."""

    def replica(spec: ReplicaSpec, announce: Path) -> list[str]:
        arguments = [
            "--settings",
            str(settings),
            "--replica-id",
            spec.replica_id,
            "--announce",
            str(announce),
        ]
        return command("counter", *arguments)

    return ProcessRuntime(replica, folders.run / "replicas", clock)


def make_cloud(folders: Folders, clock: SystemClock, zones: Sequence[Zone], seed: int) -> LocalCloud:
    """The cloud on this machine; its state file outlives the loop, not the run."""
    return LocalCloud(folders.run / "cloud.json", clock, chance(seed), zones)


async def start_workers(stack: AsyncExitStack, folders: Folders, clock: SystemClock, settings: Path) -> "Workers":
    """Start the recorder and the back office, supervised, and wait until the back office listens."""
    announce = folders.run / "backoffice.json"

    def recorder() -> Child:
        return spawn("recorder", command("recorder", "--settings", str(settings)), folders.log("recorder"))

    def backoffice() -> Child:
        arguments = ["--settings", str(settings), "--announce", str(announce)]
        return spawn("backoffice", command("backoffice", *arguments), folders.log("backoffice"))

    workers = Workers(Supervisor("recorder", recorder, clock), Supervisor("backoffice", backoffice, clock), announce)
    for supervisor in (workers.recorder, workers.backoffice):
        supervisor.start()
        stack.push_async_callback(supervisor.stop, ROLE_STOP_S)
    await read_announced_port(workers.backoffice.child, announce, clock)
    return workers


async def read_announced_port(child: Child, path: Path, clock: SystemClock) -> int:
    """Wait until the process has announced its port. Raises EngineError when it ends or takes over ANNOUNCE_S."""
    until = clock.monotonic_s() + ANNOUNCE_S
    while (port := announced_port(path)) is None:
        if clock.monotonic_s() > until or child.returncode is not None:
            raise child.failure("did not start")
        await clock.sleep(POLL_S)
    return port


def announced_port(path: Path) -> int | None:
    """What a process has announced; None when it has not yet. The file is renamed into place, so it is whole."""
    if not path.exists():
        return None
    port: int = msgspec.json.decode(path.read_bytes())["port"]
    return port


@dataclass(frozen=True)
class Workers:
    """The supervised processes beside the counters."""

    recorder: Supervisor
    backoffice: Supervisor
    announce: Path

    def backoffice_url(self) -> str:
        """Where payments go."""
        port = announced_port(self.announce)
        return f"http://127.0.0.1:{port}"


def settings_file(folders: Folders, name: str, settings: RoleSettings) -> Path:
    """Write settings where only we can read them."""
    path = folders.run / f"{name}.json"
    write_private(path, settings)
    return path
