"""Whatever comes and whatever stands: no request and no unit of stock is lost or made, in either order path."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from springtide.twin.simulation.flow import Capacity, OrderPath, PathSettings
from springtide.twin.simulation.path_events import EventPath
from springtide.twin.simulation.path_fluid import FluidPath

START_MS = 1_700_000_000_000
SHARE = st.floats(0.0, 1.0)
STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.05, 0.5, 1.0, 5.0]),
        st.floats(0.0, 200.0),
        st.one_of(st.just(0.0), st.floats(0.001, 500.0)),
        st.integers(0, 5),
        st.sampled_from([0, 1, 7]),
        st.booleans(),
    ),
    min_size=1,
    max_size=25,
)
WORLDS = st.builds(
    PathSettings,
    stock=st.integers(0, 3_000),
    shards=st.just(4),
    shard_per_s=st.floats(1.0, 500.0),
    shard_shares=st.sampled_from([(), (1.0, 0.0, 0.0, 0.0), (0.4, 0.3, 0.2, 0.1)]),
    recorder_per_s=st.floats(0.0, 500.0),
    journal_max=st.integers(0, 500),
    service_ms=st.floats(0.1, 200.0),
    deadline_ms=st.integers(1, 3_000),
    purchase_share=SHARE,
    retry_share=SHARE,
    retry_after_s=st.floats(0.05, 10.0),
    retries_max=st.integers(0, 4),
    pay_share=SHARE,
    pay_after_s=st.floats(0.0, 10.0),
    hold_s=st.floats(0.1, 20.0),
    sold_out_again_share=SHARE,
    page_cost=st.floats(0.1, 2.0),
    sold_out_cost=st.sampled_from([0.3, 1.0]),
    opens_ms=st.sampled_from([0, START_MS + 4_000]),
    closes_ms=st.sampled_from([0, START_MS + 20_000]),
    bots_share=st.sampled_from([0.0, 0.6]),
    bot_buyers=st.integers(1, 50),
    bot_addresses=st.integers(1, 3),
    service_scv=st.sampled_from([0.0, 1.0]),
    sold_out_wait_ms=st.sampled_from([0.0, 20.0]),
)


def keeps_its_books(path: OrderPath, stock: int, steps: list[tuple[float, float, float, int, int, bool]]) -> None:
    at_ms, waited, journal = START_MS, 0.0, 0.0
    for dt_s, rate, capacity, up, replicas, own in steps:
        flow = path.step(at_ms, dt_s, rate, Capacity(capacity, up, replicas=replicas, own_queues=own and replicas > 0))
        at_ms += round(1000 * dt_s)
        slack = 1e-6 * (1.0 + flow.requests + stock)
        answered = flow.acknowledged + flow.sold_out + flow.shed + flow.failed + flow.pages
        assert abs(flow.requests - answered - (flow.waiting - waited)) <= slack
        assert abs(flow.stock + flow.reserved + flow.paid - stock) <= slack
        assert abs(flow.journal - journal - flow.acknowledged + flow.recorded) <= slack
        assert flow.bots_refused + flow.shed_first <= flow.shed + slack
        assert flow.retries + flow.bots <= flow.requests + slack
        assert all(getattr(flow, field) >= -slack for field in flow.__struct_fields__), flow
        waited, journal = flow.waiting, flow.journal


@settings(max_examples=500, deadline=None)
@given(WORLDS, STEPS)
def test_fluid_steps_keep_their_books(
    world: PathSettings, steps: list[tuple[float, float, float, int, int, bool]]
) -> None:
    keeps_its_books(FluidPath(world), world.stock, steps)


@settings(max_examples=200, deadline=None)
@given(WORLDS, STEPS, st.integers(0, 1_000))
def test_single_requests_keep_their_books(
    world: PathSettings, steps: list[tuple[float, float, float, int, int, bool]], seed: int
) -> None:
    keeps_its_books(EventPath(world, random.Random(seed)), world.stock, steps)
