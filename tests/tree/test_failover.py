"""Who may stand in, and who is taken in: the pure decisions."""

from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.identity.standing import MAX_PARENTS, PermittedParent, Standing
from cluster_controller.tree.failover import (
    GRANDPARENT,
    HOME,
    MAX_DEPTH,
    MOST,
    SIBLING,
    UNCLE,
    Lender,
    Policy,
    Ring,
    Turnstile,
    home_ancestors,
    judge,
    parents,
    permitted,
)
from cluster_controller.tunnel.course import Parent
from cluster_controller.tunnel.messages import RefusalCode


def controller(uid: str, *addresses: str, relation: str = "") -> PermittedParent:
    return PermittedParent(uid, f"name-{uid}", addresses or (f"{uid}:10000",), relation)


def standing(*listed: PermittedParent) -> Standing:
    return Standing(child="me", parents=listed, serial=1, signature=b"", chain=())


OWN = standing(
    controller("grand", relation=HOME),
    controller("great-uncle", relation=UNCLE),
    controller("great", relation=GRANDPARENT),
    controller("uncle-1", relation=SIBLING),
    controller("uncle-2", relation=SIBLING),
    controller("top", relation="ancestor"),
)


def test_home_then_its_siblings_the_grandparent_own_siblings_and_those_above() -> None:
    listed = permitted("child", controller("me"), OWN, Ring([controller("brother"), controller("child")]))
    assert [one.relation for one in listed] == [HOME, UNCLE, UNCLE, GRANDPARENT, SIBLING, "ancestor", "ancestor"]
    assert {one.uid for one in listed[1:3]} == {"uncle-1", "uncle-2"}
    assert [one.uid for one in listed[3:]] == ["grand", "brother", "great", "top"]


def test_who_advertises_no_address_is_no_alternate_but_home_is_always_named() -> None:
    mute = PermittedParent("brother", "brother", ())
    own = standing(PermittedParent("grand", "grand", (), HOME))
    listed = permitted("child", PermittedParent("me", "me", ()), own, Ring([mute]))
    assert [one.uid for one in listed] == ["me"]


@given(st.lists(st.text("abcdef", min_size=1, max_size=6), unique=True, max_size=60), st.text("abcdef", min_size=1, max_size=6))
def test_lists_are_bounded_and_name_nobody_twice_nor_the_child(uids: list[str], child: str) -> None:
    own = standing(controller("grand", relation=HOME), *(controller(uid, relation=SIBLING) for uid in uids[::2]))
    listed = permitted(child, controller("me"), own, Ring(controller(uid) for uid in uids[1::2]))
    names = [one.uid for one in listed]
    assert len(names) == len(set(names)) <= MAX_PARENTS and child not in names[1:]
    assert names[0] == "me"


def test_children_spread_over_equals_and_a_new_sibling_changes_few_lists() -> None:
    children = [f"child-{number}" for number in range(1000)]
    own = standing(controller("grand", relation=HOME), *(controller(f"uncle-{number}", relation=SIBLING) for number in range(4)))
    first: dict[str, int] = {}
    for child in children:
        uid = permitted(child, controller("me"), own, Ring([]))[1].uid
        first[uid] = first.get(uid, 0) + 1
    assert len(first) == 4 and min(first.values()) > 200
    before, after = Ring(map(controller, children)), Ring(map(controller, [*children, "one-more"]))
    changed = [child for child in children if before.after(child, MOST[SIBLING]) != after.after(child, MOST[SIBLING])]
    assert len(changed) <= MOST[SIBLING]


def test_a_child_dials_home_at_its_old_and_new_addresses_then_the_alternates() -> None:
    home = Parent("me", "me", ("old:1",))
    held = standing(controller("me", "new:1", relation=HOME), controller("a"), PermittedParent("mute", "mute", ()), controller("b"))
    assert parents(home, held, Policy()) == (
        Parent("me", "me", ("old:1", "new:1")),
        Parent("a", "name-a", ("a:10000",)),
        Parent("b", "name-b", ("b:10000",)),
    )
    assert [one.uid for one in parents(home, held, Policy(allow=False))] == ["me"]
    assert [one.uid for one in parents(home, held, Policy(alternates=("name-b", "nobody")))] == ["me", "b"]
    assert parents(Parent("another", "x", ("x:1",)), held, Policy()) == (Parent("another", "x", ("x:1",)),)
    assert parents(home, None, Policy()) == (home,)


LENDER = Lender(name="lender", path=("root", "region", "lender"), live=("root", "region", "lender"), guests=0, policy=Policy())


def code(ancestors: tuple[str, ...], **changes: object) -> tuple[RefusalCode, bool] | None:
    fields = {name: getattr(LENDER, name) for name in LENDER.__struct_fields__} | changes
    refusal = judge("child", "child", ancestors, Lender(**fields))
    return None if refusal is None else (refusal.code, refusal.retry_after > 0)


def test_only_who_is_linked_to_an_ancestor_of_the_childs_home_takes_it_in() -> None:
    assert code(("home", "root")) is None
    assert code(("lender",)) is None  # it is one itself
    assert code(("home", "root"), live=("region", "lender")) == (RefusalCode.OUT_OF_REACH, True)
    assert code(("home", "root"), live=("lender",)) == (RefusalCode.OUT_OF_REACH, True)
    assert code(("home", "root"), path=("root", "child", "lender")) == (RefusalCode.LOOP, True)


def test_depth_and_load_are_bounded() -> None:
    assert code(("root",), path=("root", *map(str, range(MAX_DEPTH)))) == (RefusalCode.FORBIDDEN, False)
    assert code(("root",), policy=Policy(guests=3), guests=2) is None
    assert code(("root",), policy=Policy(guests=3), guests=3) == (RefusalCode.BUSY, True)
    assert code(("root",), policy=Policy(guests=0)) == (RefusalCode.FORBIDDEN, False)


@given(st.integers(1, 2000), st.floats(5, 500))
def test_a_crowd_is_let_in_at_the_rate_and_nobody_waits_for_long(crowd: int, rate: float) -> None:
    turnstile = Turnstile(rate, 0.0)
    waiting = [0.0] * crowd
    admitted: list[float] = []
    tries = 0
    while waiting:
        waiting.sort()
        now = waiting.pop(0)
        tries += 1
        again = turnstile.take(now)
        if again:
            waiting.append(now + again)
        else:
            admitted.append(now)
    assert admitted[-1] <= 2.0 * crowd / rate + 1
    assert tries <= 3 * crowd
    for start in range(0, len(admitted), 50):
        inside = [at for at in admitted if admitted[start] <= at <= admitted[start] + 1.0]
        assert len(inside) <= 3 * rate + 2


def test_words_go_to_home_and_then_to_those_above_it() -> None:
    assert home_ancestors("home", ("root", "grand", "home")) == ("home", "grand", "root")
    assert home_ancestors("home", ("root",)) == ("home", "root")


@given(st.lists(st.integers(0, 30), min_size=3, max_size=14), st.data())
def test_whoever_moves_at_once_and_to_whom_nobody_ends_up_below_itself(choices: list[int], data: st.DataObject) -> None:
    """All that have lost their parent are taken in by somebody who may, all at the same moment: still a tree, or pieces of it."""
    parents = [-1, *(choice % (index + 1) for index, choice in enumerate(choices))]
    cut = data.draw(st.sets(st.integers(1, len(parents) - 1)))  # whose link to its parent is lost

    def path(one: int) -> list[int]:
        return [*path(parents[one]), one] if one else [0]

    def live(one: int) -> list[int]:
        return [*live(parents[one]), one] if one and one not in cut else [one]

    after = [-1 if one in cut else parent for one, parent in enumerate(parents)]
    for child in cut:
        lenders = [one for one in range(len(parents)) if one != child and not refused(child, path(child)[:-1], path(one), live(one))]
        if lenders:
            after[child] = data.draw(st.sampled_from(lenders))
    for start in range(len(parents)):
        seen, one = set(), start
        while one >= 0:
            assert one not in seen, f"{one} stands below itself: {after}"
            seen.add(one)
            one = after[one]


def refused(child: int, ancestors: list[int], path: list[int], live: list[int]) -> bool:
    lender = Lender(name="lender", path=tuple(map(str, path)), live=tuple(map(str, live)), guests=0, policy=Policy())
    return judge(str(child), "child", tuple(map(str, ancestors)), lender) is not None
