"""Whatever clients send: each request gets its answer, nothing else does, nothing is sold unasked.

The streams come from a grammar of HTTP/1.1 and of its usual defects. What a stream means is read a second time, by h11,
an independent implementation: where h11 refuses, the counter must not have served; where both accept, each request must
have the answer that the shop gives to what h11 has read. SPRINGTIDE_FUZZ_EXAMPLES=10000 looks longer.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from springtide.model import QUANTITY_MAX
from springtide.sale import connection
from tests.integration.counter_client import get
from tests.property.fuzzed_counter import Client, Guarded, Heard, guarded_counter, read_to_end, read_until_quiet
from tests.property.http_defects import named_defects, streams
from tests.property.http_grammar import (
    BODIES,
    BROKEN_DELIVERIES,
    ORDERS,
    WHOLE_DELIVERIES,
    Delivery,
    End,
    Message,
    good_messages,
    good_streams,
    purchases,
    with_tokens,
)
from tests.property.http_reading import STATUSES, Asked, Model, Rest, Said, read_answers, second_opinion

EXAMPLES = int(os.environ.get("SPRINGTIDE_FUZZ_EXAMPLES") or 0)


def examples(count: int) -> settings:
    """So many examples, in a longer run as many as it asks for. Large ones are part of the grammar."""
    return settings(
        max_examples=EXAMPLES or count, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow]
    )


pytestmark = pytest.mark.timeout(3600 if EXAMPLES else 120)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    with guarded_counter() as counter:
        yield counter


@dataclass(frozen=True)
class Exchange:
    """What a client sent, what h11 reads in it, and what it was told. `cut_short`: it left before the end."""

    sent: bytes
    asked: list[Asked]
    rest: Rest
    answers: list[Said]
    model: Model = field(repr=False)
    cut_short: bool = False

    def judge(self) -> int:
        """Check that these answers may be given to these requests; the number of purchases made.

        One that h11 reads may be refused as unreadable, since h11 is more liberal; then it is the last one answered.
        """
        finals = [one for one in self.answers if one.status != 100]
        asked_first = sum(one.expects for one in self.asked) + (self.rest is not Rest.NOTHING)
        assert len(self.answers) - len(finals) <= asked_first, self
        assert {one.status for one in self.answers} <= STATUSES, self
        sold = 0
        for number, said in enumerate(finals):
            if said.ends or number >= len(self.asked):
                assert said.ends, f"answer {number} to what h11 does not read: {said} in {self}"
                assert number == len(finals) - 1, f"something was answered after {said} in {self}"
                assert self.rest is not Rest.NOTHING or number < len(self.asked), self
                return sold
            wanted = self.model.statuses(self.asked[number])
            assert said.status in wanted, f"answer {number} is {said}, not one of {wanted}, in {self}"
            assert said.closes or not self.asked[number].closes, self
            sold += said.status == 201
        assert self.cut_short or len(finals) == len(self.asked), f"{len(finals)} answers in {self}"
        return sold


def exchange(sent: Sequence[bytes], heard: Heard, model: Model, *, cut_short: bool = False) -> Exchange:
    whole = b"".join(sent)
    asked, rest = second_opinion(whole)
    answers = read_answers(heard.received, [one.method == b"HEAD" for one in asked], cut_short=cut_short)
    return Exchange(whole, asked, rest, answers, model, cut_short)


def quantities(model: Model) -> int:
    return sum(quantity for _, quantity in model.made.values())


def sent_by(guarded: Guarded, stream: list[bytes]) -> tuple[list[bytes], Model]:
    """The stream with tokens of new buyers, and the model of the shop that knows them."""
    buyers = guarded.buyers()
    tokens = guarded.tokens(buyers)
    return with_tokens(stream, tokens), Model({token: buyers[number] for number, token in tokens.items()}, QUANTITY_MAX)


@examples(70)
@given(stream=good_streams(), delivery=WHOLE_DELIVERIES)
def test_each_request_of_a_good_stream_gets_the_answer_that_fits(
    guarded: Guarded, stream: list[bytes], delivery: Delivery
) -> None:
    sent, model = sent_by(guarded, stream)
    stock = guarded.stock()
    heard = guarded.talk(Client(sent, delivery))[0]
    made = exchange(sent, heard, model)
    assert (len(made.asked), made.rest) == (len(sent), Rest.NOTHING), f"the grammar's good requests are good: {made}"
    made.judge()
    # What is well-formed is refused only for its size, or for asking for another protocol in a request with a body.
    assert not [one for one in made.answers if one.ends and one.status not in (413, 501)], f"refused in {made}"
    assert heard.finished
    assert stock - guarded.stock() == quantities(model)
    guarded.is_well()


@examples(140)
@given(stream=streams(), delivery=WHOLE_DELIVERIES)
def test_a_defective_stream_is_served_up_to_the_defect_and_no_further(
    guarded: Guarded, stream: list[bytes], delivery: Delivery
) -> None:
    sent, model = sent_by(guarded, stream)
    stock, reserved = guarded.stock(), guarded.reserved
    heard = guarded.talk(Client(sent, delivery))[0]
    assert exchange(sent, heard, model).judge() == guarded.reserved - reserved
    assert stock - guarded.stock() == quantities(model)
    guarded.is_well()


def test_each_defect_that_has_a_name_is_served_as_h11_reads_it_or_refused(guarded: Guarded) -> None:
    headers = ((b"Host", b" shop"), (b"Authorization", b" Bearer <token-0>"), (b"Idempotency-Key", b" k1"))
    body = b'{"sku":"tea"}'
    message = Message(b"POST", ORDERS, (*headers, (b"Content-Length", b" %d" % len(body))), body)
    behind = Message(b"GET", b"/healthz", ((b"Host", b" shop"),)).wire()
    for defective in named_defects(message):
        for stream in ([defective, behind], [behind, defective]):
            sent, model = sent_by(guarded, stream)
            stock = guarded.stock()
            heard = guarded.talk(Client(sent, Delivery(apart=True)))[0]
            exchange(sent, heard, model).judge()
            assert stock - guarded.stock() == quantities(model), sent
    guarded.is_well()


@examples(100)
@given(message=purchases(BODIES), delivery=WHOLE_DELIVERIES)
def test_a_body_is_an_order_or_it_buys_nothing(guarded: Guarded, message: Message, delivery: Delivery) -> None:
    sent, model = sent_by(guarded, [message.wire()])
    stock = guarded.stock()
    heard = guarded.talk(Client(sent, delivery))[0]
    sold = exchange(sent, heard, model).judge()
    assert stock - guarded.stock() == sold * quantities(model)
    guarded.is_well()


@examples(40)
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
    # Connections are accepted in order: when this one is answered, those that have gone already have been seen too.
    guarded.talk(Client([get("/healthz")]))
    guarded.until_empty()
    taken = 0
    for client, told, model in zip(clients, heard, models, strict=True):
        stays = client.delivery.end is End.HALF_CLOSE
        made = exchange(client.delivery.pieces(client.stream), told, model, cut_short=not stays)
        made.judge()
        taken += held_by_buyers_of(guarded, made)
    assert stock - guarded.stock() == taken
    guarded.is_well()


def held_by_buyers_of(guarded: Guarded, made: Exchange) -> int:
    """Units that a client's buyers hold. They asked for them, and those acknowledged to this client are theirs."""
    model = made.model
    held = [one.reservation for buyer in model.tokens.values() for one in guarded.orders_of(buyer)]
    said = [json.loads(one.body) for one in made.answers if one.status == 201]
    assert {one["order_id"] for one in said} <= {one.order_id for one in held}, made
    for one in made.asked:
        model.statuses(one)
    for order in held:
        assert model.made[order.buyer, order.key] == (order.sku, order.quantity), made
    return sum(order.quantity for order in held)


@examples(8)
@given(stream=st.one_of(streams(), good_streams()), sent_share=st.floats(0, 1))
def test_who_stays_without_a_word_is_answered_and_then_put_out(
    guarded: Guarded, stream: list[bytes], sent_share: float
) -> None:
    sent, model = sent_by(guarded, stream)
    pieces = Delivery(apart=True, sent_share=sent_share).pieces(sent)
    told = Heard()
    with guarded.connect() as client:
        for piece in pieces:
            client.sendall(piece)
        read_until_quiet(client, told, 0.05)
        guarded.clock.leapt_s += connection.IDLE_TIMEOUT_S + 1
        read_to_end(client, told)
    exchange(pieces, told, model).judge()
    guarded.is_well()


@examples(8)
@given(message=good_messages(), places=st.lists(st.floats(0.01, 0.99), min_size=4, max_size=8))
def test_who_sends_a_little_now_and_then_has_a_limited_time_for_the_whole(
    guarded: Guarded, message: Message, places: list[float]
) -> None:
    sent, _ = sent_by(guarded, [message.wire()])
    pieces = Delivery(cuts=tuple(places)).pieces(sent)[:-1]
    assume(pieces)
    reserved = guarded.reserved
    told = Heard()
    with guarded.connect() as client:
        for piece in pieces:
            client.sendall(piece)
            read_until_quiet(client, told, 0.01)
            guarded.clock.leapt_s += connection.RECEIVE_TIMEOUT_S / len(pieces) + 0.1
        read_to_end(client, told)
    said = [one for one in read_answers(told.received, [message.method == b"HEAD"]) if one.status != 100]
    assert [one.ends for one in said] == [True], (sent, said)
    assert said[0].code == "request_timeout" or len(pieces[0]) > 1000 or said[0].status in (413, 501), (sent, said)
    assert guarded.reserved == reserved
    guarded.is_well()


@pytest.mark.parametrize("headers", [b"Expect: cake", b"Content-Length: 4097", b"Transfer-Encoding: gzip, chunked"])
def test_a_refused_question_for_the_head_alone_gets_no_body(guarded: Guarded, headers: bytes) -> None:
    heard = guarded.talk(Client([b"HEAD /healthz HTTP/1.1\r\nHost: shop\r\n" + headers + b"\r\n\r\n"]))[0]
    assert heard.received.endswith(b"\r\nConnection: close\r\n\r\n")
    assert heard.finished
