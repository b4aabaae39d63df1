"""What has to hold at every step of any simulation, whatever the scenario: orders, machines, limits, lines, promises.

A `Checker` is fed one `View` after another, a narrow look at the world that says nothing of how it works inside: each
invariant counts for itself what it needs and compares. What does not hold is a breach when it begins, once, until it
holds again. What a single decision promises is in `promises`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from springtide.model import FleetPolicy, Market, Node, NodeOrder, Plan, Snapshot, ZoneKind
from springtide.twin.simulation.calm import Calm
from springtide.twin.simulation.decisions import Springtide
from springtide.twin.simulation.flow import Flow, PathSettings
from springtide.twin.simulation.outcome import Breach
from springtide.twin.simulation.promises import PROMISES
from springtide.twin.simulation.run import Simulation
from springtide.twin.simulation.scenario import Scenario

CLOSE = 1e-6
"""Amounts that differ by less than this share of all that came are the same: sums of millions of fractions."""

LINE_TICKS = 24
"""So many ticks a line may carry more than its share: the decisions lower what crosses it step by step."""

RESTORED_TICKS = 3
"""For so many ticks somebody may be shed while all seems calm: what has just begun is not decided about yet."""

NODES_EVERY = 60
"""Every so many steps all machines are looked at, also when none came or went."""


class View(msgspec.Struct, frozen=True):
    """The world after a step that ended `at_s` after the beginning.

    `nodes` are all rented machines; `ordered` every order that was ever sent, by its token. `line_load` is the share
    of each line that is up (0 to 1). `snapshot` and `plan` are the last decision that was made in full; `count` is the
    last plan, of which the count of replicas alone may be newer. `policy` is what was decided by; `ours`: the fleet
    decides the count by itself as well, see `decisions.Approach`. `ended`: it is the last step.
    """

    at_s: float
    now_ms: int
    flow: Flow
    nodes: Sequence[Node] = ()
    ordered: Mapping[str, NodeOrder] = {}
    line_load: Mapping[str, float] = {}
    snapshot: Snapshot | None = None
    plan: Plan | None = None
    count: Plan | None = None
    policy: FleetPolicy | None = None
    ours: bool = True
    ended: bool = False


class Finding(msgspec.Struct, frozen=True):
    """What does not hold: of what (a zone, a line, a token; "": of the whole), and what was seen and allowed."""

    subject: str
    detail: str


class Invariant(Protocol):
    """One thing that has to hold. It is shown every view, in order."""

    name: str

    def look(self, view: View) -> Iterable[Finding]:
        """What does not hold now."""


class Checker:
    """All invariants of one simulation."""

    def __init__(self, scenario: Scenario) -> None:
        """Nothing has been seen yet."""
        self.invariants: tuple[Invariant, ...] = (
            Stock(scenario.path),
            Orders(scenario.path),
            Answers(),
            Quotas(scenario),
            Nodes(scenario),
            Emptied(scenario),
            Restored(scenario),
            LineShare(scenario),
            Promises(),
        )
        self._open: dict[str, set[str]] = {}

    def look(self, view: View) -> list[Breach]:
        """What has begun not to hold with this view."""
        found = []
        for invariant in self.invariants:
            broken = {finding.subject: finding.detail for finding in invariant.look(view)}
            before = self._open.get(invariant.name, set())
            found += [
                Breach(view.at_s, invariant.name, f"{subject}: {detail}" if subject else detail)
                for subject, detail in broken.items()
                if subject not in before
            ]
            self._open[invariant.name] = set(broken)
        return found


def checks(scenario: Scenario) -> "Watcher":
    """What `run.simulate` takes as a watch: all invariants, at every step."""
    return Watcher(Checker(scenario))


class Watcher:
    """Looks at a simulation after every step, through a View."""

    def __init__(self, checker: Checker) -> None:
        """One checker sees one simulation."""
        self._checker = checker

    def __call__(self, simulation: Simulation, flow: Flow) -> list[Breach]:
        """What has begun not to hold."""
        return self._checker.look(view_of(simulation, flow))


def view_of(simulation: Simulation, flow: Flow) -> View:
    """A simulation as the invariants see it."""
    world, decisions = simulation.world, simulation.decisions
    return View(
        at_s=simulation.at_s,
        now_ms=simulation.kernel.now_ms,
        flow=flow,
        nodes=world.market.nodes(),
        ordered=simulation.hands.ordered,
        line_load=world.line_load(),
        snapshot=decisions.snapshot,
        plan=decisions.plan,
        count=simulation.plan,
        policy=decisions.policy,
        ours=isinstance(simulation.approach, Springtide),
        ended=simulation.at_s >= simulation.scenario.duration_s - CLOSE,
    )


class Stock:
    """Nothing is oversold: what is left, reserved and paid is what was there, and it was ordered once."""

    name = "nothing oversold"

    def __init__(self, path: PathSettings) -> None:
        """All of the stock is there."""
        self._all = path.stock
        self._acknowledged = self._expired = 0.0

    def look(self, view: View) -> Iterable[Finding]:
        """See Invariant."""
        flow = view.flow
        self._acknowledged += flow.acknowledged
        self._expired += flow.expired
        sold = self._acknowledged - self._expired
        slack = CLOSE * max(1.0, self._all, self._acknowledged)
        if sold > self._all + slack or flow.stock < -slack:
            yield Finding("", f"{sold:.3f} sold of {self._all}, {flow.stock:.3f} left")
        whole = flow.stock + flow.reserved + flow.paid
        if abs(whole - self._all) > slack:
            yield Finding("units", f"{whole:.3f} are left, reserved or paid of {self._all}")
        if abs(sold - flow.reserved - flow.paid) > slack:
            yield Finding("holders", f"{flow.reserved + flow.paid:.3f} are reserved or paid, {sold:.3f} were sold")


class Orders:
    """No acknowledged order is lost: each is in the ledger or waits in the journal, which has a limit."""

    name = "no order lost"

    def __init__(self, path: PathSettings) -> None:
        """Nothing is ordered."""
        self._journal_max = path.journal_max
        self._acknowledged = self._recorded = 0.0

    def look(self, view: View) -> Iterable[Finding]:
        """See Invariant."""
        flow = view.flow
        self._acknowledged += flow.acknowledged
        self._recorded += flow.recorded
        slack = CLOSE * max(1.0, self._acknowledged)
        known = self._recorded + flow.journal
        if abs(self._acknowledged - known) > slack:
            yield Finding("", f"{self._acknowledged:.3f} acknowledged, {known:.3f} recorded or in the journal")
        if flow.recorded < 0 or not -slack <= flow.journal <= self._journal_max + slack:
            yield Finding("journal", f"{flow.journal:.0f} wait of at most {self._journal_max}")


class Answers:
    """Every request is answered in one way, once, or still waits."""

    name = "every request answered once"

    def __init__(self) -> None:
        """Nobody has come."""
        self._came = self._answered = 0.0

    def look(self, view: View) -> Iterable[Finding]:
        """See Invariant."""
        flow = view.flow
        answers = (flow.acknowledged, flow.sold_out, flow.shed, flow.failed, flow.pages)
        self._came += flow.requests
        self._answered += sum(answers)
        slack = CLOSE * max(1.0, self._came)
        if abs(self._came - self._answered - flow.waiting) > slack:
            yield Finding("", f"{self._came:.3f} came, {self._answered:.3f} were answered and {flow.waiting:.3f} wait")
        if min(answers) < -slack or flow.waiting < -slack:
            yield Finding("sign", f"fewer than none: {min(*answers, flow.waiting):.6f}")


class Quotas:
    """Rented cores stay within the account's quotas, machines within what each zone may have, cost within the limit."""

    name = "capacity within quota"

    def __init__(self, scenario: Scenario) -> None:
        """Of the scenario's own words, not of what the cloud says of itself."""
        self._quotas = scenario.cloud.quotas
        self._nodes_max = {zone.name: zone.nodes for zone in scenario.zones if zone.kind is ZoneKind.CLOUD}
        self._spend_max = scenario.policy.spend_max_cny_per_h * 100
        self._changes = Changes()

    def look(self, view: View) -> Iterable[Finding]:
        """See Invariant."""
        if not self._changes.seen(view):
            return ()
        return list(self._over(view))

    def _over(self, view: View) -> Iterable[Finding]:
        cores: Counter[tuple[Market, str]] = Counter()
        count: Counter[str] = Counter()
        for node in view.nodes:
            cores[node.market, node.zone] += node.cores
            count[node.zone] += 1
        for quota in self._quotas:
            used = sum(
                some for (market, zone), some in cores.items() if market is quota.market and quota.zone in {"", zone}
            )
            if used > quota.cores:
                yield Finding(f"{quota.market.value} {quota.zone}".strip(), f"{used} cores of {quota.cores}")
        for zone, nodes in count.items():
            if nodes > self._nodes_max.get(zone, 0):
                yield Finding(zone, f"{nodes} machines of {self._nodes_max.get(zone, 0)}")
        spent = sum(node.price_fen_per_h for node in view.nodes) if self._spend_max else 0.0
        if spent > self._spend_max + CLOSE:
            yield Finding("spending", f"{spent / 100:.2f} CNY/h of {self._spend_max / 100:.2f}")


class Nodes:
    """No machine is leaked: each is of an order that was sent, no more than were ordered, and it ends by itself."""

    name = "no node leaked"

    def __init__(self, scenario: Scenario) -> None:
        """Nothing is rented."""
        self._ends = scenario.policy.release_after_s > 0
        self._changes = Changes()

    def look(self, view: View) -> Iterable[Finding]:
        """See Invariant."""
        if not self._changes.seen(view):
            return ()
        return list(self._leaks(view))

    def _leaks(self, view: View) -> Iterable[Finding]:
        came = Counter([node.client_token for node in view.nodes])
        for token, count in came.items():
            order = view.ordered.get(token)
            if order is None:
                yield Finding(token, f"{count} machines of an order that nobody sent")
            elif count > order.count:
                yield Finding(token, f"{count} machines came of an order for {order.count}")
        for node in view.nodes:
            if self._ends and not node.release_at_ms:
                yield Finding(node.node_id, "the cloud would never take it back by itself")
            elif 0 < node.release_at_ms < view.now_ms:
                late_s = (view.now_ms - node.release_at_ms) / 1000
                yield Finding(node.node_id, f"is there {late_s:.0f} s after it should have been taken back")


class Changes:
    """Tells whether machines came or went; now and then, and at the end, that they are looked at in any case."""

    def __init__(self) -> None:
        """Nothing is rented."""
        self._before: tuple[int, str, str] = 0, "", ""
        self._looks = 0

    def seen(self, view: View) -> bool:
        """Whether to look at the machines of this view."""
        self._looks += 1
        nodes = view.nodes
        now = (len(nodes), nodes[0].node_id, nodes[-1].node_id) if nodes else (0, "", "")
        changed, self._before = now != self._before, now
        return changed or view.ended or not self._looks % NODES_EVERY


class Emptied:
    """The cloud is empty when all has been calm for as long as it takes to give it back (`calm`)."""

    name = "cloud empty after the event"

    def __init__(self, scenario: Scenario) -> None:
        """It has not been calm yet."""
        self._calm = Calm(scenario)

    def look(self, view: View) -> Iterable[Finding]:
        """See Invariant."""
        calm_s = self._calm.lasts_s(view.at_s, view.count, ours=view.ours)
        if calm_s >= self._calm.enough_s and view.nodes:
            text = f"{len(view.nodes)} machines are rented though all has been calm for {calm_s:.0f} s"
            yield Finding("", f"{text}; {self._calm.enough_s:.0f} s are enough to give them back")


class Restored:
    """When all has been calm for as long, everybody is served again, unless the ledger is too slow for the orders."""

    name = "service restored after the event"

    def __init__(self, scenario: Scenario) -> None:
        """It has not been calm yet."""
        self._calm = Calm(scenario)
        self._bad_share = scenario.slo.bad_share
        self._journal_max = scenario.path.journal_max
        self._ms_max = RESTORED_TICKS * scenario.fleet.tick_ms
        self._since_ms: int | None = None

    def look(self, view: View) -> Iterable[Finding]:
        """See Invariant."""
        flow = view.flow
        calm_s = self._calm.lasts_s(view.at_s, view.count, ours=view.ours)
        bad = flow.shed - flow.bots_refused + flow.failed
        waits_for_ledger = flow.journal >= self._journal_max * (1 - CLOSE)
        if calm_s < self._calm.enough_s or bad <= self._bad_share * flow.requests or waits_for_ledger:
            self._since_ms = None
            return
        self._since_ms = view.now_ms if self._since_ms is None else self._since_ms
        if view.now_ms - self._since_ms > self._ms_max:  # a rise that begins now ends the calm at the next tick
            share = bad / flow.requests
            yield Finding("", f"{share:.2%} are shed or fail though all has been calm for {calm_s:.0f} s")


class LineShare:
    """No line carries more than the fleet's share of it for longer than the decisions need to lower that."""

    name = "line share kept"

    def __init__(self, scenario: Scenario) -> None:
        """All lines are free."""
        self._share_max = scenario.policy.line_share_max
        self._ms_max = LINE_TICKS * scenario.fleet.tick_ms
        self._since_ms: dict[str, int] = {}

    def look(self, view: View) -> Iterable[Finding]:
        """See Invariant."""
        above = {name: load for name, load in view.line_load.items() if load > self._share_max + CLOSE}
        if view.count is not None and view.count.line_limit.share <= LINE_SHARE_LEAST:
            above = {}  # no less can be let over it
        self._since_ms = {name: self._since_ms.get(name, view.now_ms) for name in above}
        for name, since_ms in self._since_ms.items():
            if view.now_ms - since_ms > self._ms_max:
                seconds = (view.now_ms - since_ms) / 1000
                yield Finding(name, f"{above[name]:.0%} taken, {self._share_max:.0%} are ours, for {seconds:.0f} s")


LINE_SHARE_LEAST = 0.05
"""The least that the decisions let the cloud have of its traffic (`decide.line.SHARE_MIN`)."""


class Promises:
    """What each decision promises by itself (`promises`)."""

    name = "promises of a decision"

    def __init__(self) -> None:
        """Nothing is decided."""
        self._tick = -1

    def look(self, view: View) -> Iterable[Finding]:
        """See Invariant."""
        snapshot, plan, policy = view.snapshot, view.plan, view.policy
        if snapshot is None or plan is None or policy is None or snapshot.tick == self._tick:
            return
        self._tick = snapshot.tick
        for name, promise in PROMISES.items():
            for detail in promise(snapshot, plan, policy):
                yield Finding(name, f"tick {plan.tick}: {detail}")
                break
