"""The whole story of one Application across the tree: where it was written, how each level divided it, where it runs, what is silent since
when, and what happened last. Read from what the controller that is asked has; nobody else is asked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from banyanctl import happened, kinds
from banyanctl.client import Client
from banyanctl.output import Branch
from cluster_controller.errors import BanyanError, NotFound

APPLICATION = kinds.find("applications")
BELOW = kinds.find("subtreeapplications")
EVENTS = 8
UNREACHABLE = "Unreachable"  # reason of a row whose cluster is out of reach


class Place(Struct):
    """A cluster of the tree as far as one Application is concerned, with what is below it."""

    name: str
    status: str = ""
    heard: str = ""
    since: str = ""
    broken: str = ""
    adopted_by: str = ""
    replicas: int = 0  # given to this very cluster
    ready: int | None = None  # of these, as far as its row is among those that are shown
    reason: str = ""
    below: dict[str, "Place"] = {}

    def total(self) -> int:
        return self.replicas + sum(place.total() for place in self.below.values())


class Story(Struct):
    document: dict[str, Any]
    origin: str
    place: Place
    events: list[dict[str, Any]]


def gather(client: Client, namespace: str, name: str, clusters: Sequence[Mapping[str, Any]]) -> Story:
    """``clusters``: the rows of `tree.read_rows`. NotFound when there is no such Application, here or below."""
    kind, document = _find(client, namespace, name)
    own = next((row for row in clusters if not row["path"]), None)
    here = str(own["name"]) if own is not None else ""
    origin = here if kind is APPLICATION else str(((document.get("spec") or {}).get("application") or {}).get("originName", ""))
    wanted = happened.Filter(APPLICATION.kind, name)
    events, _ = happened.recent(client, kinds.path(happened.KIND, namespace), wanted, EVENTS)
    return Story(document, origin, divide(here, clusters, _counts(client, kind, namespace, name, document), document), events)


def _find(client: Client, namespace: str, name: str) -> tuple[Any, dict[str, Any]]:
    """An Application of this controller, or one that was written below: NAME.ORIGIN."""
    try:
        return APPLICATION, client.json("GET", kinds.path(APPLICATION, namespace, name))
    except NotFound:
        if "." not in name:
            raise
    return BELOW, client.json("GET", kinds.path(BELOW, namespace, name))


def _counts(client: Client, kind: Any, namespace: str, name: str, document: Mapping[str, Any]) -> dict[str, int]:
    """Replicas by cluster uid: by placement's own word where it was written, by the rows of its status elsewhere."""
    rows = (document.get("status") or {}).get("clusters") or []
    counts = {str(row.get("cluster", "")): int(row.get("desired", 0)) for row in rows}
    if kind is not APPLICATION:
        return counts
    try:
        explained = client.json("GET", kinds.path(APPLICATION, namespace, name, "explain"))
    except BanyanError:
        return counts  # nothing is placed yet
    for row in explained.get("clusters") or []:
        count = sum(int(part.get("replicas", 0)) for part in row.get("components") or [])
        if count:
            counts[str(row.get("uid", ""))] = count
    return counts


def divide(here: str, clusters: Sequence[Mapping[str, Any]], counts: Mapping[str, int], document: Mapping[str, Any]) -> Place:
    """The part of the tree that has something of the Application. Pure."""
    rows = {str(row.get("cluster", "")): row for row in (document.get("status") or {}).get("clusters") or []}
    known = {str(row["name"]): row for row in clusters}
    top = Place(here)
    for cluster in sorted(clusters, key=lambda row: list(row["path"])):
        uid = str(cluster["uid"])
        if not counts.get(uid) and uid not in rows:
            continue
        place = top
        for hop in cluster["path"]:
            place = place.below.setdefault(hop, _place(hop, known.get(hop)))
        place.replicas = counts.get(uid, 0)
        row = rows.get(uid)
        if row is not None:
            place.ready, place.reason = int(row.get("ready", 0)), str(row.get("reason", ""))
    return top


def _place(name: str, row: Mapping[str, Any] | None) -> Place:
    if row is None:
        return Place(name)
    return Place(
        name, str(row["status"]), str(row["heard"]), str(row.get("since", "")), str(row["brokenHop"]), str(row.get("adoptedBy", ""))
    )


def draw(place: Place) -> Branch:
    """Each level with the sum of what is below it."""
    silent = place.status not in ("", "Ready")
    words = [f"{place.name}  {place.total()}"]
    if place.replicas:
        ready = "" if place.ready is None else f", {place.ready} ready"
        words.append(
            (f"runs {place.replicas} here{ready}" if place.below else f"runs {place.replicas}{ready}")
            + (" by its last report" if silent else "")
        )
    if silent:
        words.append(
            f"{place.status}" + (f" since {place.since}" if place.since else "") + (f", heard {place.heard} ago" if place.heard else "")
        )
        if place.broken:
            words.append(f"broken: {place.broken}")
    elif place.reason:
        words.append(place.reason)
    if place.adopted_by:
        words.append(f"adopted by {place.adopted_by}")
    mood = "bad" if silent or (place.reason and place.replicas != place.ready) else "good"
    return Branch("  ".join(words), "bad" if mood == "bad" else "good", [], [draw(one) for one in place.below.values()])


def silent(place: Place) -> list[dict[str, Any]]:
    """Clusters out of reach that have something of it, for programs."""
    mine = (
        [] if place.status in ("", "Ready") else [{"name": place.name, "since": place.since, "heard": place.heard, "broken": place.broken}]
    )
    return mine + [one for below in place.below.values() for one in silent(below)]


def plain(place: Place) -> dict[str, Any]:
    """For programs."""
    return {
        "name": place.name,
        "status": place.status,
        "total": place.total(),
        "replicas": place.replicas,
        "ready": place.ready,
        "below": [plain(one) for one in place.below.values()],
    }
