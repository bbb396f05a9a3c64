"""A child speaks for its own subtree alone: whatever else it announces or withdraws changes no route."""

from collections.abc import Callable

import msgspec
import pytest

from cluster_controller.identity import Identity
from cluster_controller.tunnel import Routes
from cluster_controller.tunnel.messages import AttachRecord, Withdrawal
from tests.tunnel.support import identity, record_of, root, run
from tests.tunnel.test_hostile import Stranger, hello, parent


def signed_by_another(member: Identity, parent_uid: str, attach: int, signer: Identity) -> AttachRecord:
    """A record of ``member`` in its own words and with its own key, but with another's signature."""
    return msgspec.structs.replace(
        record_of(member, parent_uid, attach), signature=record_of(signer, parent_uid, attach).signature
    )  # fmt: skip


LIES = {
    "below itself, signed by itself": lambda sibling, liar: signed_by_another(sibling, liar.uid, 9, liar),
    "below itself, with its own key": lambda sibling, liar: msgspec.structs.replace(record_of(liar, liar.uid, 9), uid=sibling.uid),
    "an older record with another parent": lambda sibling, liar: msgspec.structs.replace(
        record_of(sibling, root().uid, 9), parent_uid=liar.uid
    ),
    "an older record with a later attach": lambda sibling, liar: msgspec.structs.replace(record_of(sibling, liar.uid, 1), attach=9),
    "a true record of another place": lambda sibling, liar: record_of(sibling, root().uid, 9),
    "a true record that is no newer": lambda sibling, liar: record_of(sibling, liar.uid, 1),
}  # fmt: skip


async def welcomed(port: int, who: Identity) -> Stranger:
    """``who``, let in as a child, about to say what it likes."""
    stranger = await Stranger.connect(port, who)
    stranger.say(hello(who, 1))
    await stranger.answer()
    return stranger


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_child_that_announces_its_sibling_changes_nothing(lie: Callable[[Identity, Identity], AttachRecord]) -> None:
    async def main() -> None:
        async with parent() as (member, port):
            sibling, liar = identity("sibling"), identity("liar")
            one, two = await welcomed(port, sibling), await welcomed(port, liar)
            known = member.router.record(sibling.uid)
            two.say(Routes(announce=(lie(sibling, liar),)))
            await member.until(lambda: member.controls)
            assert member.router.next_hop(sibling.uid) == sibling.uid
            assert member.router.record(sibling.uid) == known is not None
            two.say(Routes(withdraw=(Withdrawal(uid=sibling.uid, attach=9),)))
            await member.until(lambda: len(member.controls) == 2)
            assert member.router.next_hop(sibling.uid) == sibling.uid
            await one.drop()
            await two.drop()

    run(main)


def test_a_child_that_says_itself_that_it_moved_is_found_there() -> None:
    """What the lies above resemble: the record is newer, and signed by the cluster that it speaks of."""

    async def main() -> None:
        async with parent() as (member, port):
            sibling, region = identity("sibling"), identity("region")
            one, two = await welcomed(port, sibling), await welcomed(port, region)
            two.say(Routes(announce=(record_of(sibling, region.uid, 9),)))
            await member.until(lambda: member.controls)
            assert member.router.next_hop(sibling.uid) == region.uid
            assert member.router.apply(region.uid, Routes(announce=(record_of(identity("third"), root().uid, 3),))).refused
            assert member.router.next_hop(identity("third").uid) is None
            await one.drop()
            await two.drop()

    run(main)
