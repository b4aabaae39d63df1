"""`springtide why` and `springtide replay`: what the control loop decided and why, and what it would decide today."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from springtide.cli.sale_show import moment as at
from springtide.cli.sale_show import say, say_json
from springtide.errors import UserError
from springtide.fleet.journal import read_journal
from springtide.fleet.replay import replay
from springtide.fleet.why import Moment, why

EXIT_DIFFERS = 1
DIFFERENCES_SHOWN = 20


def run_why(journal: Path, service: str, last: int, *, as_json: bool) -> int:
    """Print the last decisions that changed something. Raises UserError when there is no journal, or none of them."""
    if last < 1:
        raise UserError(f"--last must be at least 1, not {last}")
    moments = why(read_journal(journal), service, last)
    if not moments:
        whose = f" for {service!r}" if service else ""
        raise UserError(f"{journal} holds no decision{whose}; does the service run? see `springtide status`")
    if as_json:
        say_json(msgspec.to_builtins(moments))
    else:
        for moment in moments:
            _show(moment)
    return 0


def _show(moment: Moment) -> None:
    before, after = moment.wanted
    number = f"{before} → {after} replicas" if before != after else f"{after} replicas"
    zones = ", ".join(f"{zone} {count}" for zone, count in moment.placement.items())
    say(f"{at(moment.at_ms)}  {moment.service}  {number}  ({zones})")
    _lines("because", moment.reasons)
    _lines("alert", moment.alerts)
    _lines("did", [f"{what}: {reason}" for what, reason in moment.actions])
    _lines("failed", moment.failures)


def _lines(word: str, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        say(f"    {word if number == 0 else '':8}{line}")


def run_replay(journal: Path, *, as_json: bool) -> int:
    """Decide everything again with the code of today; 1 when a plan would be another one. Raises UserError."""
    differences = list(replay(journal))
    if as_json:
        say_json(msgspec.to_builtins(differences))
        return EXIT_DIFFERS if differences else 0
    for difference in differences[:DIFFERENCES_SHOWN]:
        say(f"{at(difference.now_ms)}  tick {difference.tick}: {', '.join(difference.fields)} would differ")
        for field in difference.fields:
            say(f"    {field}: {getattr(difference.recorded, field)}")
            say(f"    {'today':{len(field)}}: {getattr(difference.decided, field)}")
    if len(differences) > DIFFERENCES_SHOWN:
        say(f"and {len(differences) - DIFFERENCES_SHOWN} more; --json shows them all")
    if not differences:
        say("every decision would be the same today")
    return EXIT_DIFFERS if differences else 0
