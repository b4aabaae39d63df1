"""Which rented nodes nobody wants any more: told apart so that no running leader and no dead one's sale loses any.

What is certain goes, what is doubtful is named. A leader that runs looks after the nodes that it lists itself. When
none runs, a node may still serve a sale: it is a stray only once its own time is over.
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from springtide.model import Node

ROUNDED_MS = 60_000
"""By how much the moment of an order may be too early: ECS tells `CreationTime` to the minute."""


class Leaders(StrEnum):
    """What is known of the control loops that share this installation's nodes."""

    RUNNING = "running"
    DEAD = "dead"
    GONE = "gone"
    UNKNOWN = "unknown"


class Claims(msgspec.Struct, frozen=True):
    """Who may want nodes. `node_ids` and `tokens` are those that a leader has listed or is buying.

    `heard_ms` is when the leader made its list (0: never). `gone_ms` is since when it is certain that nothing is wanted
    any more (0: it is not). DEAD: it is wanted that something runs, but no loop does; GONE: everything was taken down.
    """

    leaders: Leaders
    node_ids: frozenset[str] = frozenset()
    tokens: frozenset[str] = frozenset()
    heard_ms: int = 0
    gone_ms: int = 0


class SweepPolicy(msgspec.Struct, frozen=True):
    """`grace_ms` is waited on top of everything. `release_after_ms` is the life of a node without an end of its own.

    That is counted from its order or, when later, from `events_end_ms`, the end of the last event on the calendar.
    `older_than_ms` is an operator's word: older nodes that no running leader lists are strays (0: nothing is said).
    """

    grace_ms: int
    release_after_ms: int
    events_end_ms: int = 0
    older_than_ms: int = 0


class Finding(msgspec.Struct, frozen=True):
    """One rented node, whether it is a stray, and why or why not."""

    node: Node
    stray: bool
    reason: str


def judge(nodes: Sequence[Node], claims: Claims, policy: SweepPolicy, now_ms: int) -> list[Finding]:
    """One finding for each rented node, in the order given; nodes without a token (IDC) are left out."""
    return [Finding(node, *_judge(node, claims, policy, now_ms)) for node in nodes if node.client_token]


def end_ms(node: Node, policy: SweepPolicy) -> int:
    """When a node's time is over by itself."""
    return node.release_at_ms or max(_begun_ms(node), policy.events_end_ms) + policy.release_after_ms


def _judge(node: Node, claims: Claims, policy: SweepPolicy, now_ms: int) -> tuple[bool, str]:
    match claims.leaders:
        case Leaders.UNKNOWN:
            return False, "whether a leader wants it cannot be known now"
        case Leaders.RUNNING:
            return _led(node, claims, policy)
        case _:
            return _left(node, claims, policy, now_ms)


def _led(node: Node, claims: Claims, policy: SweepPolicy) -> tuple[bool, str]:
    """A leader runs: what it does not list, long after the order, it will never look after."""
    if node.node_id in claims.node_ids or node.client_token in claims.tokens:
        return False, "a running leader has it in its list"
    unknown_ms = claims.heard_ms - _begun_ms(node) - ROUNDED_MS
    if unknown_ms > policy.grace_ms:
        return True, f"the running leader does not know it, {_span(unknown_ms)} after its order"
    return False, "younger than the grace: the leader may still list it"


def _left(node: Node, claims: Claims, policy: SweepPolicy, now_ms: int) -> tuple[bool, str]:
    begun_ms = _begun_ms(node)
    over_ms = now_ms - end_ms(node, policy)
    if over_ms > policy.grace_ms:
        return True, f"its time was over {_span(over_ms)} ago"
    if claims.gone_ms and now_ms - max(claims.gone_ms, begun_ms) > policy.grace_ms:
        return True, f"its platform was taken down {_span(now_ms - claims.gone_ms)} ago"
    if policy.older_than_ms and now_ms - begun_ms > policy.older_than_ms:
        return True, f"rented {_span(now_ms - begun_ms)} ago, and no leader runs"
    if claims.leaders is Leaders.DEAD:
        return False, "its loop is dead, its sale may not be: kept until its time is over"
    return False, "kept until its time is over"


def _begun_ms(node: Node) -> int:
    return node.rented_ms or node.since_ms


def _span(ms: int) -> str:
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min")):
        if ms >= 2 * size:
            return f"{ms / size:.0f} {unit}"
    return f"{ms / 1000:.0f} s"
