"""`springtide sweep` and `springtide run sweep`: rented nodes that nobody wants any more are found and given back.

A process of its own, so that no fault of a control loop keeps it from its work: it goes on when the platform is
killed, and ends by itself when nothing is left that it could find. What it does is in its own log, `sweep.jsonl`.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from springtide.cli.clouds import open_cloud
from springtide.cli.fleet_show import duration
from springtide.cli.platform_folder import PlatformFolder, Running
from springtide.cli.sale_show import say, say_json, table
from springtide.cli.sweep_claims import claims_of
from springtide.config import Config, load
from springtide.decide.strays import Claims, Finding, Leaders, SweepPolicy, judge
from springtide.drivers.pids import started_ticks
from springtide.drivers.system import SystemClock
from springtide.errors import CloudError, ConfigError, Refused, SpringtideError
from springtide.ports import Clock, Cloud

EXIT_STRAYS = 1
BATCH = 100
"""Nodes in one call (ECS: DeleteInstances takes 1 to 100 ids)."""

LOG_BYTES_MAX = 8_000_000
"""A log that is longer begins anew; the one before it is kept."""

EMPTY_SWEEPS = 2
"""So many sweeps in a row without a platform and without nodes end the process."""

_MS_PER_H = 3_600_000

log = structlog.get_logger(__name__)


class Swept(msgspec.Struct, frozen=True):
    """What one sweep found, and what became of the strays. `errors` is by node."""

    at_ms: int
    leaders: Leaders
    findings: tuple[Finding, ...]
    released: tuple[str, ...] = ()
    errors: dict[str, str] = {}

    @property
    def strays(self) -> list[Finding]:
        """Those that nobody wants."""
        return [one for one in self.findings if one.stray]

    @property
    def left(self) -> int:
        """Strays that are still there."""
        return len(self.strays) - len(self.released)


class _Line(msgspec.Struct, frozen=True):
    at_ms: int
    node_id: str
    zone: str
    client_token: str
    reason: str
    outcome: str


@dataclass
class Sweeper:
    """Sweeps one cloud, as often as it is told to."""

    clock: Clock
    cloud: Cloud
    claims: Callable[[], Awaitable[Claims]]
    policy: SweepPolicy
    log: Path | None
    _told: set[tuple[str, str]] = field(default_factory=set)

    async def sweep(self, *, release: bool) -> Swept:
        """List, judge, and with `release` give the strays back. Raises CloudError when the list cannot be had."""
        nodes = await self.cloud.nodes()
        claims = await self.claims()
        now_ms = self.clock.now_ms()
        findings = tuple(judge(nodes, claims, self.policy, now_ms))
        strays = [one.node.node_id for one in findings if one.stray]
        released, errors = await self._release(strays) if release else ([], {})
        swept = Swept(now_ms, claims.leaders, findings, tuple(released), errors)
        self._write(swept)
        return swept

    async def _release(self, node_ids: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """A batch that fails does not keep the others; it is tried again at the next sweep."""
        released: list[str] = []
        errors: dict[str, str] = {}
        for begin in range(0, len(node_ids), BATCH):
            some = node_ids[begin : begin + BATCH]
            try:
                await self.cloud.release(some)
            except (CloudError, OSError) as error:
                errors.update(dict.fromkeys(some, str(error)))
            else:
                released.extend(some)
        return released, errors

    def _write(self, swept: Swept) -> None:
        """A line for each stray, when something about it is new. A log that cannot be written stops no sweep."""
        lines = []
        for one in swept.strays:
            node = one.node
            gone = node.node_id in swept.released
            outcome = "released" if gone else swept.errors.get(node.node_id, "left")
            if (node.node_id, outcome) not in self._told:
                lines.append(_Line(swept.at_ms, node.node_id, node.zone, node.client_token, one.reason, outcome))
        self._told = {(line.node_id, line.outcome) for line in lines} | {
            (name, outcome) for name, outcome in self._told if any(one.node.node_id == name for one in swept.strays)
        }
        if not lines or self.log is None:
            return
        try:
            if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
                self.log.replace(self.log.with_suffix(".1.jsonl"))
            with self.log.open("ab") as out:
                out.writelines(msgspec.json.encode(line) + b"\n" for line in lines)
        except OSError as error:
            log.warning("the log of sweeps cannot be written", log=str(self.log), error=str(error))


def sweep_policy(config: Config, older_than_h: float = 0.0) -> SweepPolicy:
    """What the configuration says of lives and grace."""
    events = [
        event for name in {one.service for one in config.calendar if one.service} for event in config.calendar_of(name)
    ]
    return SweepPolicy(
        grace_ms=round(config.cloud.sweep_grace_s * 1000),
        release_after_ms=round(config.cloud.release_after_h * _MS_PER_H),
        events_end_ms=max((event.opens_ms + event.lasts_ms for event in events), default=0),
        older_than_ms=round(older_than_h * _MS_PER_H),
    )


@dataclass(frozen=True)
class SweepOptions:
    """What the command line asks for. Without a configuration, that of the folder's platform."""

    config: Path | None
    data: Path
    release: bool
    older_than_h: float
    json: bool


async def run_sweep(options: SweepOptions, environ: Mapping[str, str]) -> int:
    """Sweep once and say what was found; 1 when strays are left. Raises Refused, ConfigError, CloudError."""
    clock = SystemClock()
    folder = PlatformFolder(options.data)
    config = _config(options, folder, environ)
    if config.cloud.driver == "local" and folder.running() is not None:
        raise Refused(
            "the platform runs, and its cloud on this machine is one file that is its own: there are no strays"
        )
    with folder.locked() if config.cloud.driver == "local" and folder.data.is_dir() else contextlib.nullcontext():
        swept = await _sweep_once(options, config, folder, clock)
    if options.json:
        say_json(as_json(swept))
    else:
        _tell(swept, released=options.release)
    return EXIT_STRAYS if swept.left else 0


async def _sweep_once(options: SweepOptions, config: Config, folder: PlatformFolder, clock: SystemClock) -> Swept:
    cloud = open_cloud(config, clock, folder.data)
    try:
        log_file = folder.sweep_log if folder.data.is_dir() else None
        policy = sweep_policy(config, options.older_than_h)
        sweeper = Sweeper(clock, cloud, _claims(folder, config, clock), policy, log_file)
        return await sweeper.sweep(release=options.release)
    finally:
        await cloud.close()


def _config(options: SweepOptions, folder: PlatformFolder, environ: Mapping[str, str]) -> Config:
    if options.config is not None:
        return load(options.config, environ)
    settings = folder.settings()
    if settings is None:
        raise Refused(f"no platform runs from {folder.data}: give the configuration with --config")
    return settings.config


def _claims(folder: PlatformFolder, config: Config, clock: SystemClock) -> Callable[[], Awaitable[Claims]]:
    return lambda: claims_of(folder, config.cloud.installation, clock)


def as_json(swept: Swept) -> dict[str, object]:
    """For programs."""
    return {
        "at_ms": swept.at_ms,
        "leaders": swept.leaders,
        "nodes": len(swept.findings),
        "strays": [
            {
                "node": one.node.node_id,
                "zone": one.node.zone,
                "type": one.node.instance_type,
                "client_token": one.node.client_token,
                "reason": one.reason,
                "released": one.node.node_id in swept.released,
                "error": swept.errors.get(one.node.node_id, ""),
            }
            for one in swept.strays
        ],
        "left": swept.left,
    }


def _tell(swept: Swept, *, released: bool) -> None:
    rows = []
    for one in swept.findings:
        node = one.node
        gone = node.node_id in swept.released
        verdict = ("released" if gone else "stray") if one.stray else "kept"
        age = duration(swept.at_ms - (node.rented_ms or node.since_ms))
        rows.append((node.node_id, node.zone, age, verdict, swept.errors.get(node.node_id, one.reason)))
    if rows:
        table(("node", "zone", "rented for", "verdict", "why"), rows)
    say(f"{len(rows)} rented nodes, {len(swept.strays)} strays, {len(swept.released)} released")
    if swept.left and not released:
        say("`springtide sweep --release` gives the strays back")


async def run_sweeper(data: Path) -> int:
    """The process beside a platform: sweep until SIGTERM, or until there is neither a platform nor a node.

    Raises ConfigError without settings of a platform in the folder.
    """
    clock, folder = SystemClock(), PlatformFolder(data)
    settings = folder.settings()
    if settings is None:
        msg = f"{folder.data}: there are no settings of a platform; `springtide up` writes them"
        raise ConfigError(msg)
    config = settings.config
    cloud = open_cloud(config, clock, folder.data)
    folder.announce_sweep(Running(os.getpid(), started_ticks(os.getpid()), ""))
    sweeper = Sweeper(clock, cloud, _claims(folder, config, clock), sweep_policy(config), folder.sweep_log)
    try:
        await _go_on(sweeper, folder, config, clock)
    except asyncio.CancelledError:
        log.info("ended as asked")
    finally:
        await cloud.close()
    return 0


async def _go_on(sweeper: Sweeper, folder: PlatformFolder, config: Config, clock: SystemClock) -> None:
    empty = 0
    while empty < EMPTY_SWEEPS:
        # Not at once: a leader that has just started has not listed anything yet.
        await clock.sleep(config.cloud.sweep_every_s)
        other = folder.sweeping()
        if other is not None and other.pid != os.getpid():
            log.info("another process sweeps now: ended", pid=other.pid)
            return
        try:
            swept = await sweeper.sweep(release=config.cloud.sweep_release)
        except (SpringtideError, OSError) as error:
            log.warning("nothing was swept", error=str(error))
            continue
        if swept.strays:
            log.warning("strays", found=len(swept.strays), released=len(swept.released), errors=len(swept.errors))
        empty = empty + 1 if not swept.findings and folder.running() is None else 0
    log.info("no platform and no node is left: ended")
