"""The board gives out what was posted and no more, and forgets no lane."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.workers.driving.board import BULK_TURN, MAX_TAKE, Board
from penstock.workers.ports import Post

NOW = 1_700_000_000.0
posts = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["p", "q"]), st.integers(0, 1000), st.integers(-1, 3)), max_size=12
)


def board(lanes: int) -> Board:
    made = Board()
    for lane in range(lanes):
        made.own(lane, 10 + lane)
    return made


@given(posts, st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["p", "q"]), st.integers(1, 500))))
def test_grants_never_pass_what_was_posted(
    told: list[tuple[int, str, int, int]], asks: list[tuple[str, str, int]]
) -> None:
    """Whoever asks, how often: the sum of grants of a lane and pool is at most its last post; each fits the room."""
    made = board(6)
    left: dict[tuple[str, int], int] = {}
    for lane, pool, ready, urgency in told:
        made.post(Post(lane, pool, ready, ready * 10, urgency), 10 + lane)
        left[pool, lane] = ready
    for worker, pool, room in asks:
        grant = made.grant(worker, pool, room, NOW)
        if grant is None:
            assert not any(n for (p, _), n in left.items() if p == pool), "work was there, and nobody got it"
            continue
        assert 1 <= grant.n <= min(room, MAX_TAKE)
        assert grant.max_tokens >= 1
        assert grant.owner == 10 + grant.lane
        left[pool, grant.lane] -= grant.n
        assert left[pool, grant.lane] >= 0


@given(st.lists(st.booleans(), min_size=2, max_size=8), st.integers(0, 20))
def test_no_lane_starves(realtime: list[bool], before: int) -> None:
    """A lane with work is served within so many turns, however urgent the others are and however often they post."""
    made, lanes = board(len(realtime)), len(realtime)
    waits = dict.fromkeys(range(lanes), 0)
    for _ in range(before + 4 * BULK_TURN * lanes):
        for lane, urgent in enumerate(realtime):
            made.post(Post(lane, "p", 100, 100, urgent), 10 + lane)
        grant = made.grant("w", "p", 8, NOW)
        assert grant is not None
        waits = {lane: 0 if lane == grant.lane else turns + 1 for lane, turns in waits.items()}
        assert max(waits.values()) <= BULK_TURN * lanes


def test_realtime_goes_first() -> None:
    """Among lanes that post, the one with urgent work is granted first."""
    made = board(3)
    for lane in range(3):
        made.post(Post(lane, "p", 10, 10, lane == 2), 10 + lane)
    grant = made.grant("w", "p", 1, NOW)
    assert grant is not None
    assert grant.lane == 2


def test_what_an_old_owner_posted_is_void() -> None:
    """A lane changes hands: its posts go, and late ones of the old owner are not taken."""
    made = board(1)
    assert made.post(Post(0, "p", 5, 5), 10)
    made.own(0, 11)
    assert made.ready("p") == 0
    assert not made.post(Post(0, "p", 5, 5), 10)
    assert made.grant("w", "p", 5, NOW) is None
    assert made.post(Post(0, "p", 5, 5), 11)
    made.drop(0)
    assert made.pools() == []


def test_a_share_is_half_of_an_even_part() -> None:
    """With four workers asking, one gets an eighth: all finish together. Who asks no more is no longer counted."""
    made = board(1)
    for worker in "abcd":
        made.grant(worker, "p", 256, NOW)
    made.post(Post(0, "p", 80, 80), 10)
    grant = made.grant("a", "p", 256, NOW)
    assert grant is not None
    assert grant.n == 10
    made.post(Post(0, "p", 80, 80), 10)
    grant = made.grant("a", "p", 256, NOW + 11)
    assert grant is not None
    assert grant.n == 40
