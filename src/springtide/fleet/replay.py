"""Decide again what a journal holds, with the code of today or with another policy, and show what differs."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from springtide.decide.plan import plan
from springtide.fleet.journal import Decision, read_journal
from springtide.model import FleetPolicy, Plan


class Difference(msgspec.Struct, frozen=True):
    """A tick whose plan would be another one; `fields` names the parts of the plan that differ."""

    tick: int
    now_ms: int
    fields: tuple[str, ...]
    recorded: Plan
    decided: Plan


def replay(path: Path, policy: FleetPolicy | None = None) -> Iterator[Difference]:
    """The differences, in the journal's order. `policy` replaces the recorded one, to ask what if.

    Raises UserError when the journal cannot be read.
    """
    for entry in read_journal(path):
        if isinstance(entry, Decision):
            decided = plan(entry.snapshot, policy or entry.policy)
            fields = tuple(
                name for name in Plan.__struct_fields__ if getattr(decided, name) != getattr(entry.plan, name)
            )
            if fields:
                yield Difference(
                    tick=entry.plan.tick,
                    now_ms=entry.snapshot.now_ms,
                    fields=fields,
                    recorded=entry.plan,
                    decided=decided,
                )
