"""What is told of the way to the parent: what changes placement, and nothing else."""

import asyncio
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.distance import (
    MISSED,
    TOLD_FACTOR,
    TOLD_MILLIS,
    USERS_SECONDS,
    ParentDistance,
    UserDistances,
    connect_millis,
    steady,
)
from cluster_controller.resources.cluster import UserPoint

millis = st.floats(min_value=0, max_value=1e6)


@given(millis, millis)
def test_little_changes_are_not_told_and_large_ones_always(told: float, measured: float) -> None:
    now = steady(told, measured)
    apart = abs(measured - told)
    if apart <= TOLD_MILLIS or max(measured, told) <= TOLD_FACTOR * min(measured, told):
        assert now == told
    else:
        assert now is not None
        assert abs(now - measured) <= max(0.05 * measured, 0.01)


def test_two_digits_and_what_was_told_stays_while_nothing_is_measured() -> None:
    assert steady(None, 123.4) == 120.0
    assert steady(None, 0.234) == 0.23
    assert steady(None, 0.0) == 0.0
    assert steady(50.0, None) == 50.0
    assert steady(None, None) is None


def test_only_a_change_is_news() -> None:
    news: list[float | None] = []
    samples: list[float | None] = [None, 0.05, 0.052, 0.12, None]
    watched = ParentDistance(lambda: samples.pop(0), lambda: news.append(watched.millis))
    while samples:
        watched.look()
    assert news == [50.0, 120.0]


class Users:
    """What is asked for, and who answers how fast."""

    def __init__(self) -> None:
        self.points: list[UserPoint] = []
        self.answers: dict[str, float | None] = {}
        self.asked: list[str] = []
        self.told: list[dict[str, float]] = []
        self.watched = UserDistances(lambda: self.points, lambda: self.told.append(dict(self.watched.millis)), self.measure)

    async def measure(self, address: str) -> float | None:
        self.asked.append(address)
        return self.answers.get(address)

    def look(self, now: float) -> Mapping[str, float]:
        asyncio.run(self.watched.look(now))
        return self.watched.millis


def test_users_are_measured_now_and_then_and_told_calmly() -> None:
    users = Users()
    assert users.look(0) == {} and not users.told
    users.points = [UserPoint(name="hall", address="10.0.0.5:443"), UserPoint(name="known", millis=7)]
    users.answers["10.0.0.5:443"] = 31.4
    assert users.look(15) == {"hall": 31.0, "known": 7.0}
    users.answers["10.0.0.5:443"] = 33.0
    assert users.look(30) == {"hall": 31.0, "known": 7.0} and len(users.asked) == 1
    assert users.look(15 + USERS_SECONDS) == {"hall": 31.0, "known": 7.0} and len(users.asked) == 2, "a breath is no news"
    users.answers["10.0.0.5:443"] = 90.0
    assert users.look(15 + 2 * USERS_SECONDS)["hall"] == 90.0
    assert len(users.told) == 2
    users.points = users.points[1:]
    assert users.look(500) == {"known": 7.0}


def test_users_that_do_not_answer_count_as_not_measured_after_a_while() -> None:
    users = Users()
    users.points = [UserPoint(name="hall", address="10.0.0.5:443")]
    users.answers["10.0.0.5:443"] = 20.0
    users.look(0)
    users.answers.clear()
    for missed in range(1, MISSED + 1):
        assert ("hall" in users.look(missed * USERS_SECONDS)) == (missed < MISSED)
    users.answers["10.0.0.5:443"] = 20.0
    assert users.look((MISSED + 1) * USERS_SECONDS) == {"hall": 20.0}
    users.points = [UserPoint(name="hall", address="10.0.0.6:443")]
    assert users.look((MISSED + 1) * USERS_SECONDS) == {}, "another address is another distance"


def test_nothing_wakes_before_somebody_is_named_and_then_at_once() -> None:
    async def main() -> None:
        users, loop = Users(), asyncio.get_running_loop()
        task = loop.create_task(users.watched.run())
        for _ in range(3):
            await asyncio.sleep(0)
        assert users.watched.next() is None
        assert not loop._scheduled  # type: ignore[attr-defined]  # no timer
        users.points = [UserPoint(name="known", millis=7)]
        users.watched.named()
        for _ in range(3):
            await asyncio.sleep(0)
        assert users.told == [{"known": 7.0}] and users.watched.next() is None, "who needs no measurement wakes nobody"
        users.points = [UserPoint(name="hall", address="10.0.0.5:443")]
        users.answers["10.0.0.5:443"] = 31.4
        began = loop.time()
        users.watched.named()
        for _ in range(3):
            await asyncio.sleep(0)
        due = users.watched.next()
        assert users.told[1:] == [{"hall": 31.0}] and due is not None and due >= began + USERS_SECONDS
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_a_round_trip_is_a_connection_accepted_or_refused() -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        answered = await connect_millis(f"127.0.0.1:{port}")
        server.close()
        await server.wait_closed()
        refused = await connect_millis(f"127.0.0.1:{port}")
        assert answered is not None and refused is not None
        assert await connect_millis("name.invalid:80") is None

    asyncio.run(main())
