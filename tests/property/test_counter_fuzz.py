"""Whatever clients send: each request gets its answer, nothing else does, nothing is sold unasked, the counter serves on.

The streams come from a grammar of HTTP/1.1 and of its usual defects. What a stream means is read a second time, by h11, an
independent implementation: where h11 refuses, the counter must not have served; where both accept, each request must have
the answer that the shop gives to what h11 has read. SPRINGTIDE_FUZZ_EXAMPLES=10000 looks longer.
"""

import json
import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from springtide.model import QUANTITY_MAX
from springtide.sale import connection, listener
from tests.property.fuzzed_counter import Client, Guarded, Heard, guarded_counter, read_to_end, read_until_quiet
from tests.property.http_grammar import (
    BODIES,
    BROKEN_DELIVERIES,
    WHOLE_DELIVERIES,
    Delivery,
    Message,
    End,
    good_messages,
    good_streams,
    purchases,
    streams,
    with_tokens,
)
from tests.property.http_reading import STATUSES, Asked, Model, Rest, Said, read_answers, second_opinion

EXAMPLES = int(os.environ.get("SPRINGTIDE_FUZZ_EXAMPLES") or 0)


def examples(count: int) -> settings:
    """So many examples, in a longer run as many as it asks for. Large ones are part of the grammar."""
    return settings(max_examples=EXAMPLES or count, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    with guarded_counter() as counter:
        yield counter


def judge(asked: list[Asked], rest: Rest, answers: list[Said], model: Model, *, cut_short: bool = False) -> int:
    """Whether these answers may be given to what h11 has read; the number of purchases made.

    A request that h11 reads may be refused as unreadable, since h11 is more liberal; then it is the last that is answered.
    """
    finals = [one for one in answers if one.status != 100]
    assert len(answers) - len(finals) <= sum(one.expects for one in asked) + (rest is not Rest.NOTHING)
    assert {one.status for one in answers} <= STATUSES
    sold = 0
    for number, said in enumerate(finals):
        last = number == len(finals) - 1
        if said.ends or number >= len(asked):
            assert said.ends, f"answer {number} to what h11 does not read, {rest}: {said}"
            assert last, f"something was answered after {said}"
            assert rest is not Rest.NOTHING or number < len(asked)
            return sold
        wanted = model.statuses(asked[number])
        assert said.status in wanted, f"{asked[number]} was answered by {said}, not one of {wanted}"
        assert said.closes or not asked[number].closes
        sold += said.status == 201
    if not cut_short:
        assert len(finals) == len(asked), f"{len(finals)} answers to {asked}, then {rest}"
    return sold


def heads(asked: list[Asked]) -> list[bool]:
    return [one.method == b"HEAD" for one in asked]


def quantities(model: Model) -> int:
    return sum(quantity for _, quantity in model.made.values())


def sent_by(guarded: Guarded, stream: list[bytes]) -> tuple[list[bytes], Model]:
    """The stream with tokens of new buyers, and the model of the shop that knows them."""
    buyers = guarded.buyers()
    tokens = guarded.tokens(buyers)
    return with_tokens(stream, tokens), Model({token: buyers[number] for number, token in tokens.items()}, QUANTITY_MAX)


@examples(150)
@given(stream=good_streams(), delivery=WHOLE_DELIVERIES)
def test_each_request_of_a_good_stream_gets_the_answer_that_fits(
    guarded: Guarded, stream: list[bytes], delivery: Delivery
) -> None:
    sent, model = sent_by(guarded, stream)
    asked, rest = second_opinion(b"".join(sent))
    assert (len(asked), rest) == (len(sent), Rest.NOTHING), "the grammar's good requests are good"
    stock = guarded.stock()
    heard = guarded.talk(Client(sent, delivery))[0]
    answers = read_answers(heard.received, heads(asked))
    assert heard.finished
    judge(asked, rest, answers, model)
    assert not [one for one in answers if one.ends and one.status not in (413, 501)], (sent, answers)
    assert stock - guarded.stock() == quantities(model)
    guarded.is_well()


@examples(250)
@given(stream=streams(), delivery=WHOLE_DELIVERIES)
def test_a_defective_stream_is_served_up_to_the_defect_and_no_further(
    guarded: Guarded, stream: list[bytes], delivery: Delivery
) -> None:
    sent, model = sent_by(guarded, stream)
    asked, rest = second_opinion(b"".join(sent))
    stock, reserved = guarded.stock(), guarded.reserved
    heard = guarded.talk(Client(sent, delivery))[0]
    answers = read_answers(heard.received, heads(asked))
    assert judge(asked, rest, answers, model) == guarded.reserved - reserved
    assert stock - guarded.stock() == quantities(model)
    guarded.is_well()


@examples(150)
@given(message=purchases(BODIES), delivery=WHOLE_DELIVERIES)
def test_a_body_is_an_order_or_it_buys_nothing(guarded: Guarded, message: Message, delivery: Delivery) -> None:
    sent, model = sent_by(guarded, [message.wire()])
    asked, rest = second_opinion(sent[0])
    stock = guarded.stock()
    heard = guarded.talk(Client(sent, delivery))[0]
    sold = judge(asked, rest, read_answers(heard.received, heads(asked)), model)
    assert stock - guarded.stock() == sold * quantities(model)
    guarded.is_well()


@examples(80)
@given(rows=st.lists(st.tuples(st.one_of(streams(), good_streams()), BROKEN_DELIVERIES), min_size=2, max_size=4))
def test_clients_that_leave_or_disturb_one_another_get_their_own_answers(
    guarded: Guarded, rows: list[tuple[list[bytes], Delivery]]
) -> None:
    stock = guarded.stock()
    clients, models = [], []
    for stream, delivery in rows:
        sent, model = sent_by(guarded, stream)
        clients.append(Client(sent, delivery))
        models.append(model)
    heard = guarded.talk(*clients)
    guarded.until_empty()
    taken = 0
    for client, told, model in zip(clients, heard, models, strict=True):
        asked, rest = second_opinion(b"".join(client.delivery.pieces(client.stream)))
        stays = client.delivery.end is End.HALF_CLOSE
        judge(asked, rest, read_answers(told.received, heads(asked)), model, cut_short=not stays)
        taken += held_by_buyers_of(guarded, model, asked, told)
    assert stock - guarded.stock() == taken
    guarded.is_well()


def held_by_buyers_of(guarded: Guarded, model: Model, asked: list[Asked], told: Heard) -> int:
    """Units that a client's buyers hold. They asked for them, and those acknowledged to this client are theirs."""
    held = [one.reservation for buyer in model.tokens.values() for one in guarded.orders_of(buyer)]
    said = [json.loads(one.body) for one in read_answers(told.received, heads(asked)) if one.status == 201]
    assert {one["order_id"] for one in said} <= {one.order_id for one in held}
    for one in asked:
        model.statuses(one)
    for order in held:
        assert model.made[order.buyer, order.key] == (order.sku, order.quantity)
    return sum(order.quantity for order in held)


STAYS = Delivery(pauses=(True,), apart=True)


@examples(12)
@given(stream=st.one_of(streams(), good_streams()), sent_share=st.floats(0, 1))
def test_who_stays_without_a_word_is_answered_and_then_put_out(
    guarded: Guarded, stream: list[bytes], sent_share: float
) -> None:
    sent, model = sent_by(guarded, stream)
    pieces = Delivery(apart=True, sent_share=sent_share).pieces(sent)
    asked, rest = second_opinion(b"".join(pieces))
    told = Heard()
    with guarded.connect() as client:
        for piece in pieces:
            client.sendall(piece)
        read_until_quiet(client, told, 0.05)
        guarded.clock.leapt_s += connection.IDLE_TIMEOUT_S + 1
        read_to_end(client, told)
    answers = read_answers(told.received, heads(asked))
    judge(asked, rest, answers, model)
    guarded.is_well()
