"""What is tortured: engines, three counters, the recorder and the back office, each where it can be struck alone."""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from springtide.cli.roles import RoleSettings
from springtide.cli.stores import Given, Places, Stores, start_stores
from springtide.cli.supervisor import Supervisor, starts
from springtide.cli.world import (
    ROLE_STOP_S,
    Folders,
    announced_port,
    make_settings,
    read_announced_port,
    role,
    settings_file,
)
from springtide.config import CounterSettings, InventorySettings
from springtide.drivers import netns, small_disk
from springtide.drivers.netns import Namespace, PrivateNetwork
from springtide.drivers.small_disk import Ballast, mount_small_disk
from springtide.drivers.system import SystemClock, SystemIds
from springtide.drivers.valkey_library import library_source
from springtide.errors import EngineError, UserError
from springtide.model import Role, Sale, Sku
from springtide.sale.api_keys import make_key
from springtide.sale.tokens import key_of
from springtide.twin.torture.client import Address, Where
from springtide.twin.torture.schedule import FaultKind

COUNTERS = 3
DISK_MB = 512
"""Sparse: it takes what is written. A long run writes under 100 MB."""

RESERVE_MB = 64
"""Enough for a torture: its client buys some 300 times a second, 0.1 MB/s."""

HOLD_MS = 2_000
DAY_MS = 86_400_000
LOOPBACK = "127.0.0.1"

_BREAKS = {
    # Takes stock and tells the buyer, and leaves no journal entry for the ledger.
    "no-journal": re.compile(rb"^ *server\.call\('XADD', journal, .*$", re.MULTILINE),
}


@dataclass(frozen=True)
class Target:
    """A process that can be struck; `pids` are all that have to be stopped to stop it."""

    name: str
    supervisor: Supervisor
    node: Namespace | None
    pids: Callable[[], list[int]]
    serving: Callable[[], bool]
    """Whether the process that runs now has announced that it listens; for what announces nothing, whether it runs."""


@dataclass(frozen=True)
class TortureWorld:
    """All of it. `impossible` says why some kinds of fault cannot be had here."""

    folders: Folders
    stores: Stores
    settings: RoleSettings
    api_key: str
    sale: Sale
    scarce: frozenset[str]
    targets: Mapping[str, Target]
    addresses: "Addresses"
    ballast: Ballast | None
    impossible: Mapping[FaultKind, str]

    def groups(self) -> list[list[str]]:
        """Targets that stand for each other."""
        counters = [name for name in self.targets if name.startswith("counter")]
        return [counters, *([name] for name in self.targets if name not in counters)]

    def where(self) -> Where:
        """For the client."""
        return Where(
            sale=self.sale,
            scarce=self.scarce,
            counters=self.addresses.counters,
            backoffice=lambda: self.addresses.of("backoffice"),
            token_key=key_of(bytes.fromhex(self.settings.token_master)),
            webhook_secret=bytes.fromhex(self.settings.webhook_secret),
        )


class Addresses:
    """Where processes listen that announce their ports: looked up once for each pid."""

    def __init__(self, folder: Path) -> None:
        """Announcements are in this folder."""
        self._folder = folder
        self._known: dict[int, Address] = {}
        self._roles: dict[str, tuple[Supervisor, str]] = {}

    def path(self, name: str) -> Path:
        """Where it announces itself."""
        return self._folder / f"{name}-port.json"

    def add(self, name: str, supervisor: Supervisor, host: str) -> None:
        """A process that listens on a port of `host`."""
        self._roles[name] = (supervisor, host)

    def of(self, name: str) -> Address | None:
        """None while it is being started again."""
        supervisor, host = self._roles[name]
        pid = supervisor.child.pid
        if pid not in self._known and (port := announced_port(self.path(name), pid)) is not None:
            self._known[pid] = (host, port)
        return self._known.get(pid)

    def counters(self) -> dict[str, Address]:
        """The counters that have announced themselves."""
        names = [name for name in self._roles if name.startswith("counter")]
        return {name: address for name in names if (address := self.of(name)) is not None}


@dataclass(frozen=True)
class TortureOptions:
    """What the command line asks for."""

    faults: int
    seed: int
    kinds: tuple[FaultKind, ...]
    out: Path
    broken: str
    given: Given


def parse_kinds(text: str) -> tuple[FaultKind, ...]:
    """Kinds of fault, separated by commas. Raises UserError."""
    known = [kind.value for kind in FaultKind]
    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        raise UserError(
            f"--kinds {text}: {', '.join(unknown) or 'nothing'} is no kind of fault; known are {', '.join(known)}"
        )
    return tuple(FaultKind(word) for word in dict.fromkeys(words))


async def start_world(
    stack: AsyncExitStack, folders: Folders, clock: SystemClock, options: TortureOptions
) -> TortureWorld:
    """Start everything and publish the sale. Raises EngineError, and UserError for an address that is none."""
    impossible = _impossible(options)
    possible = [kind for kind in options.kinds if kind not in impossible]
    if not possible:
        raise UserError("no fault can be had here: " + "; ".join(impossible.values()))
    network = PrivateNetwork() if FaultKind.CUT in possible else None
    if network is not None:
        stack.callback(network.close)
    ballast = _small_disk(folders, impossible) if FaultKind.DISK in possible else None
    (folders.run / "valkey").mkdir(exist_ok=True)
    library = broken_library(options.broken) if options.broken else None
    places = Places(folders.run / "valkey", valkey_node=_node(network), postgres_node=_node(network), library=library)
    stores = await start_stores(stack, clock, options.given, places, InventorySettings(disk_reserve_mb=RESERVE_MB))
    sale, scarce = _sale(clock.now_ms())
    await stores.ledger.publish(sale)
    if not await stores.inventory.publish(sale):
        raise EngineError(f"sale {sale.sale} is there already; torture a Valkey that has no sale of that name")
    key = make_key(SystemIds(), "torture", Role.OPERATOR, clock.now_ms())
    await stores.ledger.add_api_key(key.key)
    settings = make_settings(CounterSettings(), None, stores, SystemIds())
    if library is not None:
        (folders.run / "broken.lua").write_bytes(library)
        settings = msgspec.structs.replace(settings, library=str(folders.run / "broken.lua"))
    addresses = Addresses(folders.run)
    targets = _stores_as_targets(stores, places)
    for name in (*(f"counter-{number + 1}" for number in range(COUNTERS)), "recorder", "backoffice"):
        node = _node(network)
        supervisor = await _start_role(stack, folders, clock, (name, node, settings, addresses))
        targets[name] = _target(name, supervisor, node, addresses)
    return TortureWorld(folders, stores, settings, key.secret, sale, scarce, targets, addresses, ballast, impossible)


async def _start_role(
    stack: AsyncExitStack,
    folders: Folders,
    clock: SystemClock,
    what: tuple[str, Namespace | None, RoleSettings, Addresses],
) -> Supervisor:
    name, node, settings, addresses = what
    host = node.host if node else LOOPBACK
    path = settings_file(folders, f"{name}-settings", msgspec.structs.replace(settings, bind_host=host))
    kind = "counter" if name.startswith("counter") else name
    arguments = [] if kind == "recorder" else ["--announce", str(addresses.path(name))]
    if kind == "counter":
        arguments += ["--replica-id", name]
    supervisor = Supervisor(name, starts(role(folders, name, path, *arguments, kind=kind, node=node)), clock)
    await supervisor.start()
    stack.push_async_callback(supervisor.stop, ROLE_STOP_S)
    if kind != "recorder":
        addresses.add(name, supervisor, host)
        await read_announced_port(supervisor.child, addresses.path(name), clock)
    return supervisor


def _target(name: str, supervisor: Supervisor, node: Namespace | None, addresses: Addresses) -> Target:
    def serving() -> bool:
        return supervisor.running and (name == "recorder" or addresses.of(name) is not None)

    return Target(name, supervisor, node, lambda: [supervisor.child.pid], serving)


def _stores_as_targets(stores: Stores, places: Places) -> dict[str, Target]:
    """The engines that are ours to strike."""
    targets: dict[str, Target] = {}
    valkey, postgres, engine = stores.valkey, stores.postgres, stores.postgres_engine
    if valkey is not None:
        targets["valkey"] = Target(
            "valkey", valkey, places.valkey_node, lambda: [valkey.child.pid], lambda: valkey.running
        )
    if postgres is not None and engine is not None:
        targets["postgres"] = Target(
            "postgres", postgres, places.postgres_node, engine.processes, lambda: postgres.running
        )
    return targets


def _impossible(options: TortureOptions) -> dict[FaultKind, str]:
    """Kinds that were asked for and cannot be had, and why."""
    given = options.given
    reasons = {
        FaultKind.CUT: "engines given by address cannot be cut off"
        if given.inventory or given.ledger
        else netns.missing(),
        FaultKind.DISK: "the disk of a given Valkey is not ours to fill" if given.inventory else small_disk.missing(),
    }
    return {kind: reason for kind, reason in reasons.items() if reason and kind in options.kinds}


def _small_disk(folders: Folders, impossible: dict[FaultKind, str]) -> Ballast | None:
    try:
        mount_small_disk(folders.run / "disk.img", folders.run / "valkey", DISK_MB)
    except EngineError as error:
        impossible[FaultKind.DISK] = str(error)
        return None
    return Ballast(folders.run / "valkey")


def _node(network: PrivateNetwork | None) -> Namespace | None:
    return network.add() if network is not None else None


def _sale(now_ms: int) -> tuple[Sale, frozenset[str]]:
    """Plenty of some SKUs, so that there is always something to sell, and few of others, so that they come and go."""
    skus = (
        Sku("plenty", "Plenty", 500, 1_000_000, per_buyer_max=2, spread=True),
        Sku("ample", "Ample", 900, 1_000_000, per_buyer_max=3),
        Sku("scarce", "Scarce", 2_000, 150, per_buyer_max=1),
        Sku("rare", "Rare", 3_000, 60, per_buyer_max=2, spread=True),
    )
    sale = Sale("torture", "Torture", skus, now_ms - 1000, now_ms + DAY_MS, HOLD_MS, buckets=3)
    return sale, frozenset({"scarce", "rare"})


def broken_library(how: str) -> bytes:
    """The inventory's functions with one promise broken on purpose: a torture that does not see it is worth nothing.

    Raises UserError for a way that is not known, and EngineError when the functions have changed so that it is gone.
    """
    if how not in _BREAKS:
        raise UserError(f"--broken {how}: known are {', '.join(_BREAKS)}")
    whole, broken = library_source(), _BREAKS[how].sub(b"", library_source())
    if broken == whole:
        raise EngineError(f"--broken {how} finds nothing to break any more; adapt it to the inventory's functions")
    return broken


def processes_of(folders: Folders) -> list[str]:
    """Command lines of processes that still name the run's folder, or work in it."""
    run = str(folders.run)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if run in words:
            found.append(words)
    return found


def keep_inventory(world: TortureWorld) -> None:
    """Copy Valkey's append-only files beside the history: every write to the inventory, in order."""
    data = world.folders.run / "valkey" / "appendonlydir"
    if data.is_dir():
        shutil.copytree(data, world.folders.out / data.name, dirs_exist_ok=True)


def copy_logs(world: TortureWorld) -> None:
    """Keep the engines' logs, which lie beside their data."""
    engine = world.stores.postgres_engine
    logs = {"valkey": world.folders.run / "valkey" / "valkey.log", "postgres": engine.log if engine else None}
    for name, log in logs.items():
        if log is not None and log.exists():
            shutil.copy(log, world.folders.log(name))
