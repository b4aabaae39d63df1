"""`springtide up`: make the platform be what a configuration says, and wait until it is.

Idempotent: what is so already stays untouched. A changed service is rolled out replica by replica; when its new
revision fails, the loop puts the old one back, and this ends with status 1 and the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.table import Table

from springtide.cli.fleet_show import counts, show
from springtide.cli.platform_change import apply_settings
from springtide.cli.platform_folder import PlatformFolder, PlatformSettings
from springtide.cli.platform_link import Link, linked
from springtide.cli.platform_options import Here
from springtide.cli.platform_order import counter_wish
from springtide.cli.sale_show import say, say_json
from springtide.config import Config, load
from springtide.drivers.listening import is_taken
from springtide.drivers.system import SystemClock
from springtide.errors import UserError
from springtide.fleet.status import FleetStatus, ServiceStatus
from springtide.model import COUNTER, ReplicaState, RolloutState, ServiceWish

EXIT_NOT_AS_WANTED = 1
HOST = "127.0.0.1"


@dataclass(frozen=True)
class UpOptions:
    """What the command line asks for. Without a ledger, PostgreSQL is embedded."""

    config: Path
    ledger: str
    inventory: str
    port: int
    backoffice_port: int
    wait: bool
    wait_s: float


@dataclass(frozen=True)
class Ending:
    """How one service came out: `state` is `serving`, `rolled back`, `not ready` or `not waited for`."""

    service: str
    change: str
    port: int
    state: str
    reason: str
    replicas: str
    revision: str

    @property
    def good(self) -> bool:
        """Whether it is as wanted, as far as was asked."""
        return self.state in {"serving", "not waited for"}


async def run_up(here: Here, options: UpOptions, environ: Mapping[str, str]) -> int:
    """Bring everything up. Raises ConfigError, EngineError, and the fleet's errors."""
    config = load(options.config, environ)
    clock = SystemClock()
    folder = PlatformFolder(here.data)
    wanted = config.wishes(options.config.absolute().parent)
    platform = await apply_settings(folder, _settings(config, options), clock, options.wait_s)
    if not here.json and platform != "unchanged":
        say(f"the platform {platform}; its log is {folder.log}")
    async with linked(here.data, clock) as link:
        if config.sales:
            wanted[COUNTER] = counter_wish(folder, config, options.port)
        changes = await _wish(link, wanted, options.wait_s)
        if not here.json:
            for name, change in sorted(changes.items()):
                say(f"{name}: {change}")
        endings = await _endings(link, wanted, changes, options, tell=not here.json)
        backoffice_url = link.running.backoffice_url
    removed = sorted(changes.keys() - wanted.keys())
    if here.json:
        _tell_json(platform, endings, removed, backoffice_url)
    else:
        _tell(endings, backoffice_url)
    return 0 if all(one.good for one in endings) else EXIT_NOT_AS_WANTED


def _settings(config: Config, options: UpOptions) -> PlatformSettings:
    """What the platform's process is started with; services are wished for while it runs."""
    return PlatformSettings(
        msgspec.structs.replace(config, services=(), crowd=None),
        options.ledger,
        options.inventory,
        options.port,
        options.backoffice_port,
    )


async def _wish(link: Link, wanted: Mapping[str, ServiceWish], wait_s: float) -> dict[str, str]:
    """Write down what differs from what is wished; by service, what changed."""
    wished = (await link.state.wishes()).services
    _require_ports(wished, wanted)
    changes: dict[str, str] = {}
    for name, wish in wanted.items():
        change = difference(wished.get(name), wish)
        if not change and await _returned(link, wished[name], wait_s):
            change = f"revision {wish.spec.revision} was rolled back and is tried again"
        if change:
            await link.state.wish_service(name, wish)
            changes[name] = change
    for name in wished.keys() - wanted.keys():
        await link.state.wish_service(name, None)
        changes[name] = "removed"
    return changes


def _require_ports(wished: Mapping[str, ServiceWish], wanted: Mapping[str, ServiceWish]) -> None:
    """Raise UserError when a port is new and somebody else listens on it: the balancer could only say so in its log."""
    ours = {wish.port for wish in wished.values()}
    for name, wish in sorted(wanted.items()):
        if wish.port not in ours and is_taken(HOST, wish.port):
            where = "--port" if name == COUNTER else "its port in [[services]]"
            raise UserError(f"{name}: port {wish.port} is in use; end what listens there, or change {where}")


async def _returned(link: Link, wish: ServiceWish, wait_s: float) -> bool:
    """Wish the revision before again where this one was rolled back, so that it can be wished anew; whether it was."""
    name, previous = wish.spec.name, wish.previous
    status = await link.status()
    one = status.services.get(name) if status else None
    if previous is None or one is None or state_of(wish, one)[0] != "rolled back":
        return False
    await link.state.wish_service(name, msgspec.structs.replace(wish, spec=previous, previous=None))
    version = (await link.state.wishes()).version

    def reached(status: FleetStatus) -> bool:
        one = status.services.get(name)
        return status.wishes >= version and one is not None and one.rollout is None

    return await link.wait(wait_s, reached)


def difference(before: ServiceWish | None, after: ServiceWish) -> str:
    """What a wish changes, in words; empty when nothing."""
    if before is None:
        return "new"
    if before.spec.revision != after.spec.revision:
        return f"revision {before.spec.revision} becomes {after.spec.revision}"
    names = [
        name
        for name in ServiceWish.__struct_fields__
        if name not in {"spec", "previous"} and getattr(before, name) != getattr(after, name)
    ]
    return f"changed: {', '.join(names)}" if names else ""


async def _endings(
    link: Link, wanted: Mapping[str, ServiceWish], changes: Mapping[str, str], options: UpOptions, *, tell: bool
) -> list[Ending]:
    progress: dict[str, str] = {}
    version = (await link.state.wishes()).version

    def reached(status: FleetStatus) -> bool:
        if status.wishes < version:
            return False
        for name in wanted:
            _progress(status.services.get(name, ServiceStatus(name)), progress, tell=tell)
        gone = not any(changes.get(name) == "removed" for name in status.services)
        return gone and all(settled(wish, status.services.get(name)) for name, wish in wanted.items())

    if options.wait:
        await link.wait(options.wait_s, reached)
    status = await link.status() or FleetStatus(0, 0, "", 0)
    return [
        _ending(name, wish, changes.get(name, "unchanged"), status.services.get(name), waited=options.wait)
        for name, wish in sorted(wanted.items())
    ]


def _progress(one: ServiceStatus, told: dict[str, str], *, tell: bool) -> None:
    """A line when something has moved."""
    now = counts(one)
    if one.rollout is not None and one.rollout.state is not RolloutState.DONE:
        now += f"; revision {one.rollout.revision} {one.rollout.state.replace('_', ' ')}"
    if tell and told.get(one.service) != now:
        told[one.service] = now
        say(f"  {one.service}: {now}")


def state_of(wish: ServiceWish, one: ServiceStatus | None) -> tuple[str, str]:
    """Whether a service is as wished, and why not."""
    if one is None:
        return "not ready", "the control loop has not taken it up"
    rollout = one.rollout
    ours = rollout is not None and rollout.revision == wish.spec.revision
    if rollout is not None and ours and rollout.state is RolloutState.ROLLED_BACK:
        return "rolled back", rollout.reason
    ready = sum(states.get(ReplicaState.READY, 0) for states in one.replicas.values())
    rolling = rollout is not None and rollout.state in {RolloutState.ROLLING, RolloutState.ROLLING_BACK}
    other = rollout is not None and not ours
    if rolling or other or one.revision != wish.spec.revision:
        return "not ready", rollout.reason if rollout else "the revision has not been rolled out"
    if "health" in one.ages_ms:
        return "not ready", f"its balancer says nothing; does it listen on port {wish.port}? see `logs --platform`"
    if ready < max(1, min(one.wanted, wish.replicas_min)) or not any(one.weights.values()):
        return "not ready", one.failure or "; ".join((*one.alerts, *one.reasons)[:3])
    return "serving", ""


def settled(wish: ServiceWish, one: ServiceStatus | None) -> bool:
    """Whether nothing more is to come: it serves with all that it is to have and none that goes, or was rolled back."""
    state, _ = state_of(wish, one)
    if one is None or state != "serving":
        return state == "rolled back"
    if any(states.get(ReplicaState.DRAINING) for states in one.replicas.values()):
        return False
    return all(
        one.replicas.get(zone, {}).get(ReplicaState.READY, 0) >= count and one.weights.get(zone)
        for zone, count in one.placement.items()
        if count
    )


def _ending(name: str, wish: ServiceWish, change: str, one: ServiceStatus | None, *, waited: bool) -> Ending:
    state, reason = state_of(wish, one)
    if not waited and state == "not ready":
        state, reason = "not waited for", ""
    if state == "not ready":
        reason = f"{reason}\nsee `springtide logs {name}` and `springtide why {name}`".strip()
    replicas = counts(one) if one else "none"
    return Ending(name, change, wish.port, state, reason, replicas, wish.spec.revision)


def _tell(endings: list[Ending], backoffice_url: str) -> None:
    shown = Table("service", "change", "listens on", "state", "replicas")
    for one in endings:
        shown.add_row(one.service, one.change, f"http://{HOST}:{one.port}", one.state, one.replicas)
    show(shown)
    if backoffice_url:
        say(f"back office: {backoffice_url}/openapi.json")
    for one in endings:
        if one.reason:
            for line in f"{one.service}: {one.state}: {one.reason}".splitlines():
                say(line)


def _tell_json(platform: str, endings: list[Ending], removed: list[str], backoffice_url: str) -> None:
    services = [
        {
            "service": one.service,
            "change": one.change,
            "url": f"http://{HOST}:{one.port}",
            "state": one.state,
            "reason": one.reason,
            "replicas": one.replicas,
            "revision": one.revision,
        }
        for one in endings
    ]
    said: dict[str, object] = {"platform": platform, "services": services, "removed": removed}
    if backoffice_url:
        said["backoffice_url"] = backoffice_url
    say_json(said)
