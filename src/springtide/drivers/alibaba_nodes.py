"""What the Alibaba Cloud driver knows of its nodes between two looks: who is there, whom to ask about, what they cost.

The state is in memory: after a restart it is what the cloud lists, and the cost begins with what still runs.
"""

from collections.abc import Collection, Iterable, Mapping

import msgspec

from springtide.drivers.alibaba_settings import AlibabaSettings
from springtide.model import Node, NodeState

APPEAR_MS = 60_000
"""For how long an ordered node may be missing from the cloud's answers: it creates and lists with a delay."""

FORGET_MS = 300_000
"""For how long a node that was given back is ignored when the cloud still lists it."""

LOOK_MS_PER_NODE = 1.25
"""A look at many takes its time: 100 of them, which are one call, are not looked at again before 125 ms."""

_MS_PER_H = 3_600_000
_KEPT = 200_000  # nodes given back that are remembered at most


class NodeTable:
    """Nodes by id. Times are in milliseconds of the caller's clock."""

    def __init__(self, settings: AlibabaSettings) -> None:
        """Nobody is known."""
        self._first_ms = round(settings.first_look_s * 1000)
        self._poll_ms = round(settings.poll_s * 1000)
        self._settled_ms = round(settings.settled_s * 1000)
        self.nodes: dict[str, Node] = {}
        self._looked_ms: dict[str, int] = {}
        self._unseen: set[str] = set()
        self._listed: dict[str, None] = {}
        self._ended_ms: dict[str, int] = {}
        self.spent_fen = 0.0

    def order(self, nodes: Iterable[Node]) -> None:
        """Nodes that were bought just now, and that nobody has looked at."""
        for node in nodes:
            if node.node_id not in self.nodes:
                self.nodes[node.node_id] = node
                self._unseen.add(node.node_id)

    def list_all(self, node_ids: Collection[str], now_ms: int) -> None:
        """All that carry the tag: unknown ones are to be looked at, and those that are missing are gone."""
        self._ended_ms = {name: ms for name, ms in self._ended_ms.items() if now_ms - ms < FORGET_MS}
        fresh = [name for name in node_ids if name not in self.nodes and name not in self._ended_ms]
        self._listed = dict.fromkeys(fresh)
        present = set(node_ids)
        self.end([name for name in self.nodes if name not in present and name not in self._unseen], now_ms)

    def due(self, now_ms: int) -> list[str]:
        """Whom to look at now: the unknown, the booting, and from time to time all others."""
        due = list(self._listed)
        booting = sum(node.state is NodeState.BOOTING for node in self.nodes.values())
        poll_ms = max(self._poll_ms, booting * LOOK_MS_PER_NODE)
        for name, node in self.nodes.items():
            looked_ms = self._looked_ms.get(name)
            if looked_ms is None:
                waited = now_ms - node.rented_ms >= self._first_ms
            else:
                every_ms = poll_ms if node.state is NodeState.BOOTING else self._settled_ms
                waited = now_ms - looked_ms >= every_ms
            if waited:
                due.append(name)
        return due

    def look(self, asked: Collection[str], found: Mapping[str, Node], now_ms: int) -> None:
        """What the cloud said of those it was asked about."""
        for name in asked:
            self._listed.pop(name, None)
            node = found.get(name)
            if node is not None:
                self._meet(node, now_ms)
            elif name in self.nodes:
                self._miss(name, now_ms)

    def end(self, node_ids: Iterable[str], now_ms: int) -> None:
        """These are gone: their bill ends. Unknown ids are ignored."""
        for name in node_ids:
            node = self.nodes.pop(name, None)
            if node is None:
                continue
            self.spent_fen += cost_fen(node, now_ms)
            self._looked_ms.pop(name, None)
            self._unseen.discard(name)
            if len(self._ended_ms) < _KEPT:
                self._ended_ms[name] = now_ms

    def settle(self, now_ms: int) -> None:
        """Let go whom the cloud has released by itself."""
        self.end([name for name, node in self.nodes.items() if 0 < node.release_at_ms <= now_ms], now_ms)

    def keep_until(self, node_id: str, release_at_ms: int) -> None:
        """The cloud has moved the end of this node."""
        if node_id in self.nodes:
            self.nodes[node_id] = msgspec.structs.replace(self.nodes[node_id], release_at_ms=release_at_ms)

    def cost_fen(self, now_ms: int) -> float:
        """What all nodes that were ever known here have cost until now."""
        return self.spent_fen + sum(cost_fen(node, now_ms) for node in self.nodes.values())

    def _meet(self, node: Node, now_ms: int) -> None:
        name = node.node_id
        self._ended_ms.pop(name, None)
        self._unseen.discard(name)
        self._looked_ms[name] = now_ms
        known = self.nodes.get(name)
        if known is not None:
            node = msgspec.structs.replace(
                node,
                since_ms=known.since_ms if known.state is node.state else now_ms,
                rented_ms=known.rented_ms,
                price_fen_per_h=known.price_fen_per_h or node.price_fen_per_h,
                reclaim_ms=known.reclaim_ms or node.reclaim_ms,
            )
        self.nodes[name] = node

    def _miss(self, name: str, now_ms: int) -> None:
        if name in self._unseen and now_ms - self.nodes[name].rented_ms < APPEAR_MS:
            self._looked_ms[name] = now_ms
        else:
            self.end([name], now_ms)


def cost_fen(node: Node, now_ms: int) -> float:
    """What a node has cost until now: its price by the started second (ECS and ECI bill by the second)."""
    until_ms = min(now_ms, node.release_at_ms) if node.release_at_ms else now_ms
    seconds = -(-max(0, until_ms - node.rented_ms) // 1000)
    return node.price_fen_per_h * seconds * 1000 / _MS_PER_H
