"""`banyan status`: how a controller is, or how one application is, on one screen."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from banyanctl import application, kinds, objects, output, story
from banyanctl.cli import examples, settings
from banyanctl.client import Client
from banyanctl.happened import row
from banyanctl.tree import read_rows
from banyanctl.version import SEPARATOR
from cluster_controller.errors import BanyanError, Forbidden

WORST = 20


@examples("banyan status", "banyan status emotion", "banyan --at edge-1 status -o json")
def status(
    which: Annotated[str, typer.Argument(metavar="[APPLICATION]", help="An application.", show_default="the controller itself")] = "",
    namespace: objects.Namespace = "",
) -> None:
    """The state of a controller and of what is below it, or of one application everywhere."""
    with settings().client() as client:
        if which:
            space, name = namespace or client.endpoint.namespace, application.name_of(which)
            rows = _clusters(client)
            told = story.gather(client, space, name, rows)
            output.emit(_for_programs(told), settings().output, lambda: _application(told, {row["uid"]: row["heard"] for row in rows}))
            return
        found = controller(client)
    output.emit(found, settings().output, lambda: _controller(found))


def _clusters(client: Client) -> list[dict[str, Any]]:
    """None for a person of one namespace, who may not see the tree: the story is told without it."""
    try:
        return read_rows(client.pages(kinds.path(kinds.find("clusters"), ""), {"includeObject": "Object"}, objects.AS_TABLE))
    except Forbidden:
        return []


def controller(client: Client) -> dict[str, Any]:
    """What a controller says of itself and of what is below it."""
    pages = client.pages(kinds.path(kinds.find("clusters"), ""), {"includeObject": "Object"}, objects.AS_TABLE)
    rows = read_rows(pages)
    own = next((row for row in rows if not row["path"]), None)
    below = [row for row in rows if row["path"]]
    columns, cells = objects.read_table(
        client.pages(kinds.path(application.KIND, ""), {"includeObject": "Metadata"}, objects.AS_TABLE), namespaces=True
    )
    return {
        "name": own["name"] if own else "",
        "uid": own["uid"] if own else "",
        "parent": own["parent"] if own else "",
        "status": own["status"] if own else "",
        "server": client.endpoint.server,
        "version": _version(client),
        "checks": _checks(client),
        "clusters": {"below": len(below), "ready": sum(row["status"] == "Ready" for row in below)},
        "notReady": [{key: row[key] for key in ("name", "status", "heard", "brokenHop")} for row in below if row["status"] != "Ready"][
            :WORST
        ],
        "applications": [dict(zip((column.lower() for column in columns), row, strict=False)) for row in cells],
    }


def _version(client: Client) -> str:
    try:
        return str(client.json("GET", "/version").get("gitVersion", "")).rpartition(SEPARATOR)[2]
    except BanyanError:
        return ""


def _checks(client: Client) -> dict[str, str]:
    """The lines of /readyz?verbose: `[+]name ok` or `[-]name failed: reason`."""
    answer = client.request("GET", "/readyz", {"verbose": "1"})
    checks: dict[str, str] = {}
    for line in answer.body.decode("utf-8", "replace").splitlines():
        if line.startswith(("[+]", "[-]")):
            name, _, rest = line[3:].partition(" ")
            checks[name] = "ok" if line.startswith("[+]") else rest
    return checks or {"ready": "ok" if answer.status == 200 else f"answered {answer.status}"}


def _controller(found: Mapping[str, Any]) -> None:
    parent = f"below {found['parent']}" if found["parent"] else "root of its tree"
    print(f"{found['name'] or 'controller'}  {found['status']}  {parent}")
    print(f"  server    {found['server']}  version {found['version'] or 'unknown'}")
    for name, state in found["checks"].items():
        print(f"  {name:<9} {state}")
    below = found["clusters"]["below"]
    print(f"  clusters  {below} below, {found['clusters']['ready']} ready" if below else "  clusters  none below")
    if found["notReady"]:
        print()
        rows = [(row["name"], row["status"], row["heard"], row["brokenHop"]) for row in found["notReady"]]
        output.table(("not ready", "status", "heard", "broken"), rows)
    print()
    applications = found["applications"]
    columns = list(applications[0]) if applications else []
    output.table(columns, [list(row.values()) for row in applications], empty="no applications")


def _for_programs(told: story.Story) -> dict[str, Any]:
    """The object itself, and beside it what was found out about it."""
    found = {"origin": told.origin, "division": story.plain(told.place), "silent": story.silent(told.place), "events": told.events}
    return {**told.document, "story": found}


def _application(told: story.Story, ages: Mapping[str, str]) -> None:
    document = told.document
    metadata, state = document["metadata"], document.get("status") or {}
    ready = f"{state.get('ready', 0)} of {state.get('desired', 0)} ready"
    print(f"{metadata['namespace']}/{metadata['name']}  {state.get('phase') or 'Pending'}  {ready}")
    print(_written(told))
    rollout = state.get("rollout")
    if rollout:
        print(f"rollout: {rollout['phase']}, {rollout.get('message', '')}")
        _waves(told.origin, rollout)
    print()
    rows = [
        (
            each["name"],
            each.get("desired", 0),
            each.get("ready", 0),
            each.get("updated", 0),
            each.get("unplaced", 0),
            each.get("reason", ""),
            each.get("message", ""),
        )
        for each in state.get("components") or []
    ]
    output.table(("component", "wanted", "ready", "updated", "unplaced", "reason", "message"), rows, empty="not placed yet")
    places = [
        (
            each.get("name") or each.get("cluster", ""),
            " → ".join(each.get("path") or []),
            f"{each.get('ready', 0)}/{each.get('desired', 0)}",
            each.get("port", ""),
            ", ".join(each.get("overrides") or []),
            each.get("reason", ""),
            each.get("message", "") + (f", heard {ages[each['cluster']]} ago" if _is_silent(each, ages) else ""),
        )
        for each in state.get("clusters") or []
    ]
    if places:
        print()
        heads = ("cluster", "way", "ready", "site port", "overrides", "reason", "message")
        kept = [index for index, head in enumerate(heads) if head != "overrides" or any(row[index] for row in places)]
        output.table([heads[index] for index in kept], [[row[index] for index in kept] for row in places])
    if (count := state.get("clusterCount", 0)) > len(places):
        output.note(f"the {len(places)} that need attention most, of {count} clusters")
    if told.place.below:
        print()
        output.tree(story.draw(told.place))
    if told.events:
        print()
        output.table(
            ("last seen", "type", "reason", "message"),
            [(seen, kind, reason, text) for seen, kind, reason, _, text in map(row, told.events)],
        )
    if left := state.get("withdrawing"):
        output.note(f"withdrawing; not yet confirmed by: {', '.join(left)}")


def _waves(here: str, rollout: Mapping[str, Any]) -> None:
    """Each level by itself: a branch has waves of its own."""
    levels = rollout.get("below") or []
    if not levels:
        return
    rows = [
        (
            "/".join(level.get("path") or []) or here,
            level.get("phase", ""),
            f"{level.get('wave', 0)} of {level.get('waves', 0)}",
            f"{level.get('updated', 0)} of {level.get('clusters', 0)}",
        )
        for level in [rollout, *levels]
    ]
    output.table(("level", "rollout", "wave", "clusters updated"), rows)


def _written(told: story.Story) -> str:
    """Where and when, and who changed it last."""
    metadata, history = told.document["metadata"], (told.document.get("status") or {}).get("history") or []
    newest = max(history, key=lambda entry: int(entry.get("revision", 0)), default=None)
    made = metadata.get("creationTimestamp") or "at a time that is not known"
    words = [f"written at {told.origin or 'the controller that was asked'}, {made}"]
    if metadata.get("generation"):
        words.append(f"generation {metadata['generation']}")
    if newest is not None and newest.get("user"):
        words.append(f"last changed by {newest['user']} at {newest.get('time', '')}")
    return ", ".join(words)


def _is_silent(row: Mapping[str, Any], ages: Mapping[str, str]) -> bool:
    return row.get("reason") == story.UNREACHABLE and row.get("cluster") in ages
