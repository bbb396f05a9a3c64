"""What a cluster takes along when it is given another parent: shares go over in the books, nothing stops and nothing starts.

The common ancestor lowers the share of the branch that the cluster leaves and raises that of its new branch, by what the cluster says
it holds, in one commit. Each Work on either way carries the transfer, so that whoever divides it knows that just this much has gone
with just that cluster, or has come with it, and that nobody else's share changes for it. Pure.

Invariant: at the ancestor the sum over all targets of max(share, ceiling) is no greater after a transfer than before it; on the way out
it falls, and on the way in it rises, by no more than what the allotment does.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct, field

from cluster_controller.placement.model import Given
from cluster_controller.placement.moving import shifted
from cluster_controller.resources.application import Transfer

KEPT = 8  # transfers that a Work names; by the time of the ninth the first is long applied
Shares = Mapping[str, Mapping[str, Given]]


class Shifted(Struct, frozen=True):
    given: Shares
    onward: dict[str, list[Transfer]] = field(default_factory=dict)  # target → transfers that its Work is to carry
    after: int = 0  # share ids given from now on are greater


def targets(transfer: Transfer, me: str) -> tuple[str, str]:
    """Direct children of ``me`` whose shares fall and rise; "": nobody's."""
    if me in transfer.out:
        return _next(transfer.out, me), ""
    if me in transfer.into:
        return "", _next(transfer.into, me)
    return transfer.out[0], transfer.into[0]


def _next(way: Sequence[str], me: str) -> str:
    following = way.index(me) + 1
    return way[following] if following < len(way) else ""


def shift(given: Shares, due: Sequence[Transfer], me: str, *, duplicated: bool, reachable: Mapping[str, bool]) -> Shifted:
    """What targets hold once ``due`` has been carried out. ``reachable``: of those that held nothing so far."""
    result = {target: dict(per) for target, per in given.items()}
    onward: dict[str, list[Transfer]] = {}
    after = 0
    for transfer in due:
        leaves, enters = targets(transfer, me)
        moved = _moved(result.get(leaves, {}), transfer) if leaves else transfer.components
        if leaves:
            whole = leaves == transfer.cluster
            for name, item in result.get(leaves, {}).items():
                result[leaves][name] = _less(item, transfer.components.get(name, 0), whole, duplicated)
            _pass_on(onward, leaves, transfer)
        if enters:
            per = result.setdefault(enters, {})
            for name, count in transfer.components.items():
                item = per.get(name, Given(reachable=reachable.get(enters, True)))
                per[name] = _more(item, moved[name], count, duplicated)
            _pass_on(onward, enters, transfer)
            if enters == transfer.cluster:
                after = max(after, transfer.after)
    return Shifted(result, onward, after)


def _pass_on(onward: dict[str, list[Transfer]], target: str, transfer: Transfer) -> None:
    if target != transfer.cluster:
        onward.setdefault(target, []).append(transfer)


def _less(item: Given, count: int, whole: bool, duplicated: bool) -> Given:
    """``whole``: the target is the cluster itself; nothing of its share stays here, whatever it took along."""
    if whole:
        return Given(reachable=item.reachable)
    if duplicated:
        return item  # each cluster has the whole of it: what is left of the branch decides
    share = max(0, item.share - count)
    return msgspec.structs.replace(
        item,
        share=share,
        ceiling=max(share, item.ceiling - count),
        unplaced=min(item.unplaced, share),
        counted=min(share, max(0, item.counted - count)),
    )


def _more(item: Given, share: int, count: int, duplicated: bool) -> Given:
    """``count`` run there; ``share`` of them are wanted."""
    if duplicated:
        return msgspec.structs.replace(item, share=max(item.share, share), ceiling=max(item.ceiling, count))  # a Work goes down in any case
    return msgspec.structs.replace(item, share=item.share + share, ceiling=item.ceiling + count)


def _moved(giver: Mapping[str, Given], transfer: Transfer) -> dict[str, int]:
    """Of what it took along, what the giver's share has: less where that was lowered and it had not heard of it."""
    before = {name: giver[name].share if name in giver else 0 for name in transfer.components}
    _, raised = shifted(before, {}, transfer.components)
    return {name: raised.get(name, 0) for name in transfer.components}


def kept(before: Sequence[Transfer], new: Sequence[Transfer]) -> list[Transfer]:
    """What a Work carries from now on."""
    return [*(one for one in before if one.move not in {each.move for each in new}), *new][-KEPT:] if new else list(before)
