"""List and watch against an imagined server: after any loss, restart and compaction the follower holds what the server holds."""

from hypothesis import given
from hypothesis import strategies as st

from cluster_shim.kubernetes.listwatch import LONG_SECONDS, LONGEST_PAUSE, ListWatch


def query(step_query: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return dict(step_query)


def test_the_ordinary_course() -> None:
    plan = ListWatch(label_selector="a=b", field_selector="c=d", page=2)
    step = plan.next(0.5)
    assert (step.action, step.pause) == ("list", 0.0)
    assert query(step.query) == {"labelSelector": "a=b", "fieldSelector": "c=d", "limit": "2"}
    assert not plan.listed("", "more")
    assert query(plan.next(0.5).query)["continue"] == "more"
    assert plan.listed("10", "")
    step = plan.next(0.0)
    assert step.action == "watch"
    wanted = {"labelSelector": "a=b", "fieldSelector": "c=d", "watch": "1", "allowWatchBookmarks": "true",
              "resourceVersion": "10", "timeoutSeconds": "300"}  # fmt: skip
    assert query(step.query) == wanted
    plan.moved("12")
    plan.moved("")
    plan.ended(quiet=False, lasted=1.0)
    assert query(plan.next(0.0).query)["resourceVersion"] == "12"


def test_what_is_too_old_is_listed_again_at_once_and_a_list_that_expires_after_a_pause() -> None:
    plan = ListWatch()
    plan.listed("10", "")
    plan.expired()
    step = plan.next(0.5)
    assert (step.action, step.pause) == ("list", 0.0)
    plan.listed("", "more")
    plan.expired()
    step = plan.next(0.5)
    assert step.pause > 0
    assert "continue" not in query(step.query)


def test_a_failed_page_is_asked_for_again_and_not_the_whole_list() -> None:
    plan = ListWatch()
    plan.listed("", "more")
    plan.failed()
    step = plan.next(0.5)
    assert query(step.query)["continue"] == "more"
    assert step.pause > 0


def test_pauses_grow_are_bounded_and_end_with_the_first_word() -> None:
    plan = ListWatch()
    pauses = []
    for _ in range(30):
        plan.failed()
        pauses.append(plan.next(1.0).pause)
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
    plan.listed("5", "")
    assert plan.next(1.0).pause == 0.0
    plan.ended(quiet=True, lasted=0.1)
    assert plan.next(1.0).pause > 0, "a watch that ends at once and brings nothing must not spin"
    plan.moved("6")
    assert plan.next(1.0).pause == 0.0
    plan.ended(quiet=True, lasted=0.1)
    plan.ended(quiet=True, lasted=LONG_SECONDS)
    assert plan.next(1.0).pause == 0.0, "a watch that lasted was one, though nothing happened"


def test_a_server_that_calls_every_watch_too_old_is_asked_less_and_less_until_a_watch_brings_something() -> None:
    plan = ListWatch()
    plan.listed("10", "")
    pauses = []
    for _ in range(12):
        plan.expired()
        step = plan.next(1.0)
        assert step.action == "list"
        pauses.append(step.pause)
        plan.listed("", "more")
        assert plan.next(1.0).pause == 0.0, "only before a list begins"
        plan.listed("10", "")
        assert plan.next(1.0).pause == 0.0
    assert pauses[0] == 0.0
    assert 0 < pauses[1] < pauses[2] < pauses[-1] == LONGEST_PAUSE
    plan.moved("11")
    plan.expired()
    assert plan.next(1.0).pause == 0.0


def test_what_a_server_asks_for_is_heeded_within_reason_and_forgotten_with_its_next_answer() -> None:
    plan = ListWatch()
    plan.failed(12.0)
    assert plan.next(0.0).pause == 12.0
    assert 12.0 < plan.next(1.0).pause <= 18.0
    plan.failed(86_400.0)
    assert plan.next(0.0).pause == LONGEST_PAUSE
    plan.failed()
    assert plan.next(0.0).pause < 12.0
    plan.failed(12.0)
    plan.listed("10", "")
    assert plan.next(0.0).pause == 0.0


STEPS = st.lists(st.sampled_from(["write", "delete", "compact", "lose", "look", "end"]), max_size=60)


@given(STEPS, st.integers(1, 3))
def test_the_follower_ends_with_what_the_server_has(steps: list[str], page: int) -> None:
    """An imagined server with a history that is cut off at its oldest end; whatever happens, a quiet moment makes both equal."""
    history: list[tuple[int, str, str]] = []  # version, what, key
    objects: dict[str, int] = {}
    held: dict[str, int] = {}
    seen: set[str] = set()
    oldest = 0
    plan = ListWatch(page=page)

    def write(what: str) -> None:
        key = f"k{len(history) % 4}"
        if what == "delete" and key not in objects:
            return
        version = len(history) + 1
        history.append((version, what, key))
        if what == "write":
            objects[key] = version
        else:
            del objects[key]

    def look(lost: bool) -> None:
        step = plan.next(0.0)
        asked = query(step.query)
        if lost:
            plan.failed()
        elif step.action == "list":
            start, version = (int(part) for part in asked.get("continue", f"0/{len(history)}").split("/"))
            if version < oldest:
                plan.expired()
                return
            if not start:
                seen.clear()
            state: dict[str, int] = {}
            for number, what, key in history[:version]:
                state.pop(key, None)
                if what == "write":
                    state[key] = number
            keys = sorted(state)
            for key in keys[start : start + page]:
                seen.add(key)
                held[key] = state[key]
            onward = f"{start + page}/{version}" if start + page < len(keys) else ""
            if plan.listed(str(version), onward):
                for key in set(held) - seen:
                    del held[key]
        else:
            since = int(asked["resourceVersion"])
            if since < oldest:
                plan.expired()
                return
            for version, what, key in history[since:]:
                held.pop(key, None)
                if what == "write":
                    held[key] = version
                plan.moved(str(version))
            plan.ended(quiet=len(history) == since, lasted=1.0)

    for step in steps:
        if step in ("write", "delete"):
            write(step)
        elif step == "compact":
            oldest = len(history)
        elif step == "end":
            plan.ended(quiet=False, lasted=1.0)
        else:
            look(step == "lose")
    for _ in range(12):
        look(False)
    assert held == objects
