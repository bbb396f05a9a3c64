"""The order of first starts: who waits for whom. Pure.

A component waits at a target until what it depends on is ready there, or, where that was given to others, wherever it was given. A
target that was given both is told both: its own controller orders them. Whatever has started is never taken back because something
that it depends on fails later: this is an order of starts, no bond for life.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from cluster_controller.resources.kinds import Component


class Given(Struct, frozen=True, kw_only=True):
    """One component at one target: its share now decided, what the target was told before, and how it is there."""

    share: int = 0
    told: int = 0
    ready: int = 0
    well: bool = False  # all that was told is ready, by an answer to the newest share
    reachable: bool = True


Picture = Mapping[str, Mapping[str, Given]]  # target → component


def waiting(components: Sequence[Component], picture: Picture, *, own: str, outside: Sequence[str]) -> dict[str, dict[str, str]]:
    """Target → component → a sentence that begins with "waits for". ``outside``: what the whole application waits for."""
    held: dict[str, dict[str, str]] = {}
    wanted = {component.name: component.replicas for component in components}
    for target, parts in picture.items():
        for component in components:
            part = parts.get(component.name, Given())
            if not part.share or part.told:
                continue
            reasons = list(outside)
            for name in component.depends_on:
                reason = _why(name, wanted.get(name, 0), target, picture, own)
                if reason:
                    reasons.append(reason)
            if reasons:
                held.setdefault(target, {})[component.name] = f"waits for {', '.join(reasons)}"
    return held


def _why(name: str, wanted: int, target: str, picture: Picture, own: str) -> str:
    """Why it has to wait for ``name``; "" when it has not."""
    here = picture[target].get(name, Given())
    if here.share:
        return "" if target != own or here.well else f"{name} ({here.ready} of {here.share} ready)"
    others = [part for parts in picture.values() if (part := parts.get(name)) is not None and part.share]
    if not others:
        return f"{name} (nobody runs it yet)" if wanted else ""
    heard = [part for part in others if part.reachable]
    if heard and all(part.well for part in heard):
        return ""
    return f"{name} ({sum(part.ready for part in heard)} of {sum(part.share for part in others)} ready)"
