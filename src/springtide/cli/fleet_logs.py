"""`springtide logs`: what replicas, or the platform itself, have written last, and what they go on to write."""

import sys
from collections.abc import Mapping, Sequence

from springtide.cli.fleet_replicas import ReplicaLogs, open_logs
from springtide.cli.platform_folder import PlatformFolder
from springtide.cli.platform_link import linked
from springtide.cli.platform_options import Here
from springtide.cli.sale_show import CONTROLS, say_json
from springtide.drivers.system import SystemClock
from springtide.errors import Refused, UserError

LINES_MAX = 100_000
FOLLOW_S = 0.5
_FOLLOW_LINES = 1000


async def run_platform_logs(here: Here, lines: int) -> int:
    """The platform's own log; it can be read when the platform does not run."""
    folder = PlatformFolder(here.data)
    try:
        text = folder.log.read_text(errors="replace")
    except OSError as error:
        raise Refused(f"{folder.log}: {error.strerror}; no platform was started from {folder.data}") from error
    _print({"platform": text.splitlines()[-_checked(lines) :]}, as_json=here.json, named=False)
    return 0


async def run_logs(here: Here, service: str, replica: str, lines: int, *, follow: bool) -> int:
    """The last lines of a service's replicas, or of one; with `follow`, until Ctrl-C."""
    _checked(lines)
    if follow and here.json:
        raise UserError("give either --follow or --json: one has no end, the other is one document")
    clock = SystemClock()
    async with linked(here.data, clock) as link:
        await link.wished(service)
        source = open_logs(link.folder, link.settings, clock)
        try:
            said = await _read(source, service, replica, max(lines, _FOLLOW_LINES) if follow else lines)
            last = {name: found[-lines:] for name, found in said.items()}
            _print(last, as_json=here.json, named=len(said) > 1)
            while follow:
                await clock.sleep(FOLLOW_S)
                before, said = said, await _read(source, service, replica, max(lines, _FOLLOW_LINES))
                _print(
                    {name: after(before.get(name, ()), now) for name, now in said.items()},
                    as_json=False,
                    named=len(said) > 1,
                )
        finally:
            await source.close()
    return 0


async def _read(source: ReplicaLogs, service: str, replica: str, lines: int) -> Mapping[str, Sequence[str]]:
    ids = await source.replicas(service)
    if replica:
        if replica not in ids:
            raise UserError(f"{service} has no replica {replica!r}; it has: {', '.join(ids) or 'none'}")
        ids = [replica]
    return {name: await source.lines(name, lines) for name in ids}


def after(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """The lines of `now` that follow the end of `before`: both are ends of one log, `now` the later one."""
    before, now = list(before), list(now)
    if now[: len(before)] == before:
        return now[len(before) :]
    for known in range(min(len(before), len(now)), 0, -1):
        if now[:known] == before[-known:]:
            return now[known:]
    return now


def _checked(lines: int) -> int:
    if not 1 <= lines <= LINES_MAX:
        raise UserError(f"--lines {lines}: give 1 to {LINES_MAX}")
    return lines


def _print(said: Mapping[str, Sequence[str]], *, as_json: bool, named: bool) -> None:
    if as_json:
        say_json({name: list(lines) for name, lines in said.items()})
        return
    for name, lines in said.items():
        for line in lines:
            text = line.translate(CONTROLS)
            sys.stdout.write(f"{name}  {text}\n" if named else f"{text}\n")
    sys.stdout.flush()
