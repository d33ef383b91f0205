"""Batches for followers: numbered without gaps, kept until everybody has them, whoever dies in between."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.flow.outbox import MAX_BATCHES, Outbox


@given(st.lists(st.sampled_from(["add", "apply", "trim", "crash"]), max_size=60))
def test_numbers_run_without_gaps_across_crashes(steps: list[str]) -> None:
    """A follower sees 1, 2, 3 …; after a crash what it may miss is offered again, and no number means two batches."""
    outbox, disk, number, follower = Outbox({}, 1), dict[str, bytes](), 1, list[bytes]()
    for count, step in enumerate(steps):
        if step == "add":
            number = outbox.next_number  # what the commit says is taken before the batch is added
            name, data = outbox.add(b"%d" % count)
            disk[name] = data
        elif step == "apply":
            for each, data in outbox.waiting():
                if each > len(follower):
                    assert each == len(follower) + 1
                    follower.append(data)
                assert follower[each - 1] == data
                outbox.applied(each)
        elif step == "trim":
            number = outbox.next_number
            for name in outbox.trim():
                del disk[name]
        else:
            outbox = Outbox(disk, number)
        assert outbox.lacks(len(follower)) is None
        assert outbox.lacks(outbox.next_number) == "ahead"
        assert outbox.lacks(len(follower) - 1) in ((None,) if len(follower) in dict(outbox.waiting()) else ("behind",))
    assert [n for n, _ in outbox.waiting()] == sorted(n for n, _ in outbox.waiting())


def test_a_follower_that_is_down_pauses_the_lane() -> None:
    """The outbox is bounded: when it is full nothing more is read, until the follower comes back."""
    outbox = Outbox({}, 1)
    for _ in range(MAX_BATCHES):
        assert not outbox.full
        outbox.add(b"x")
    assert outbox.full
    outbox.applied(1)
    assert not outbox.full
    assert outbox.trimmable
