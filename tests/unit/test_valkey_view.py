"""Who has which shard, when the servers of a cluster do not agree."""

from springtide.drivers.valkey_view import Known, Said, _read, logs_of, shards_of

OLD = Known("old", ("10.0.0.1", 1), "", 3, ("0-5460",))
NEW = Known("new", ("10.0.0.2", 2), "", 7, ("0-5460",))
THIRD = Known("third", ("10.0.0.3", 3), "new", 7, ())
NODES = """\
old 10.0.0.1:1@11 master,fail - 1 2 3 disconnected 0-5460 [5461->-abc]
new 10.0.0.2:2@12,host myself,slave old 0 0 3 connected
third :3@13 slave old 0 0 3 connected
fresh 10.0.0.4:4@14 handshake - 0 0 0 connected
"""


def said(me: Known, *others: Known, linked: bool = False, log: int = 0) -> Said:
    return Said(me.node_id, (me, *others), log, linked, "")


def test_of_two_who_claim_a_shard_the_newer_has_it_whoever_is_asked_first() -> None:
    before = (said(OLD, NEW._replace(primary="old", epoch=3, slots=()), THIRD._replace(primary="old", epoch=3)),)
    after = (said(NEW, OLD._replace(slots=()), THIRD), said(THIRD, OLD._replace(slots=()), NEW))

    for answers in (before + after, after + before):
        [shard] = shards_of(answers)
        assert (shard.primary.node_id, [one.node_id for one in shard.replicas]) == ("new", ["third"])
    [shard] = shards_of(before)
    assert (shard.primary.node_id, [one.node_id for one in shard.replicas]) == ("old", ["new", "third"])


def test_what_a_server_says_of_itself_comes_before_what_others_say_of_it() -> None:
    follows = THIRD._replace(primary="old", epoch=7)

    for answers in ((said(NEW, follows), said(THIRD, NEW)), (said(THIRD, NEW), said(NEW, follows))):
        [shard] = shards_of(answers)
        assert [one.node_id for one in shard.replicas] == ["third"]


def test_only_logs_of_those_that_hear_no_primary_count() -> None:
    answers = {"new": said(NEW, log=5), "third": said(THIRD, linked=True, log=9)}

    assert logs_of((NEW, THIRD, OLD), answers) == {"new": 5}


def test_what_a_server_says_is_read() -> None:
    info = "role:slave\r\nmaster_link_status:down\r\nslave_repl_offset:42\r\nmaster_repl_offset:40\r\n"

    found = _read(("10.0.0.9", 2), NODES, info, "secret")

    assert found is not None
    assert (found.node_id, found.log, found.linked, found.secret) == ("new", 42, False, "secret")
    assert found.me == Known("new", ("10.0.0.2", 2), "old", 3, ())
    assert [one.address for one in found.known] == [("10.0.0.1", 1), ("10.0.0.2", 2), ("10.0.0.9", 3)]
    assert found.known[0].slots == ("0-5460",)
    assert _read(("10.0.0.9", 2), NODES.replace("myself,", ""), info, "") is None
