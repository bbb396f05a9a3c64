"""`banyan tree`: every cluster below, as a picture: health, how long ago it was heard, what runs there, which link is broken."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import typer

from banyanctl import kinds, objects, output
from banyanctl.cli import examples, settings
from banyanctl.client import Client
from banyanctl.output import Branch
from cluster_controller.resources.selectors import parse_labels

DEPTH_LIMIT = 64  # of a drawn tree; deeper ones are asked for with --at


@examples("banyan tree", "banyan tree -l tier=edge", "banyan --at region-a tree -o wide", "banyan tree -o json")
def tree(
    selector: objects.Selector = "",
    broken: Annotated[bool, typer.Option("--broken", help="Only clusters that are not Ready, with the way to them.")] = False,
) -> None:
    """Draw the tree below a controller: health, age, applications, broken links."""
    with settings().client() as client, output.progress("reading the tree"):
        rows = read_rows(cluster_pages(client, selector))
    nested = nest(rows)
    if settings().output == "name":
        output.emit([row["name"] for row in rows], "name", lambda: None)
        return
    output.emit(nested, settings().output, lambda: _draw(nested, wide=settings().output == "wide", broken=broken))


def cluster_pages(client: Client, selector: str) -> Iterator[Mapping[str, Any]]:
    """The server's table of clusters, cut to those whose labels fit: the site's own and every ancestor's, merged, as placement sees them.

    (`metadata.labels`, which the API itself selects by, holds only what the controller that is asked laid over them.)
    """
    wanted = parse_labels(selector)
    path = kinds.path(kinds.find("clusters"), "")
    for page in client.pages(path, {"includeObject": "Object"}, objects.AS_TABLE):
        rows = [row for row in page.get("rows") or [] if wanted.matches(_labels(row))]
        yield {**page, "rows": rows}


def _labels(row: Mapping[str, Any]) -> dict[str, str]:
    thing = row.get("object") or {}
    return {**((thing.get("metadata") or {}).get("labels") or {}), **((thing.get("status") or {}).get("labels") or {})}


def read_rows(pages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One plain mapping per cluster: what its object says, and the ages that the server computed for the table."""
    found: list[dict[str, Any]] = []
    names: list[str] = []
    for page in pages:
        names = [column["name"].lower() for column in page.get("columnDefinitions") or []] or names
        for row in page.get("rows") or []:
            cells = dict(zip(names, row["cells"], strict=False))
            thing = row.get("object") or {}
            status = thing.get("status") or {}
            facts = status.get("facts") or {}
            ready: Mapping[str, Any] = next((one for one in status.get("conditions") or [] if one.get("type") == "Ready"), {})
            found.append(
                {
                    "name": (thing.get("metadata") or {}).get("name") or cells.get("name", ""),
                    "uid": status.get("uid", ""),
                    "parent": status.get("parent", ""),
                    "parentUid": status.get("parentUid", ""),
                    "path": status.get("path") or [],
                    "status": str(cells.get("status") or status.get("phase") or "Unknown"),
                    "heard": str(cells.get("heard") or ""),
                    "brokenHop": str(cells.get("broken") or status.get("brokenHop") or ""),
                    "since": "" if ready.get("status") in (None, "True") else str(ready.get("lastTransitionTime", "")),
                    "adoptedBy": status.get("adoptedBy", ""),
                    "age": str(cells.get("age") or ""),
                    "conflicts": facts.get("conflicts", 0),
                    "applications": facts.get("applications", 0),
                    "instances": facts.get("instances", 0),
                    "nodes": facts.get("nodes", 0),
                    "nodesReady": facts.get("nodesReady", 0),
                    "shim": facts.get("shim", ""),
                    "version": facts.get("version", ""),
                    "labels": status.get("labels") or {},
                }
            )
    return found


def nest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each cluster with its children; what has no parent in the list comes first level. Equal names stay apart by uid."""
    by_uid = {row["uid"] or row["name"]: row | {"children": []} for row in rows}
    tops: list[dict[str, Any]] = []
    for uid, row in sorted(by_uid.items(), key=lambda item: item[1]["name"]):
        parent = by_uid.get(row["parentUid"])
        (tops if parent is None or _is_below(uid, row["parentUid"], by_uid) else parent["children"]).append(row)
    return tops


def _is_below(uid: str, parent: str, by_uid: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the parent hangs below the cluster itself, as two reports of different age may claim for a moment."""
    for _ in range(DEPTH_LIMIT):
        if parent == uid:
            return True
        if parent not in by_uid:
            return False
        parent = by_uid[parent]["parentUid"]
    return True


def _draw(tops: list[dict[str, Any]], *, wide: bool, broken: bool) -> None:
    if not tops:
        output.note("no cluster answers to that; `banyan tree` without a selector shows all")
        return
    width = max(_width(top, 0) for top in tops)
    for top in tops:
        branch = _branch(top, width, 0, wide=wide)
        if broken and not _prune(branch):
            output.note("every cluster is Ready")
            continue
        output.tree(branch)


def _width(row: Mapping[str, Any], depth: int) -> int:
    own = 4 * depth + len(row["name"])
    return max([own, *(_width(child, depth + 1) for child in row["children"])]) if depth < DEPTH_LIMIT else own


def _branch(row: Mapping[str, Any], width: int, depth: int, *, wide: bool) -> Branch:
    ready = row["status"] == "Ready"
    mark = "●" if ready else "○"
    words = [f"{row['name']:<{max(1, width - 4 * depth)}}  {mark} {row['status']:<8}"]
    if row["heard"] and row["heard"] not in ("<none>", "-"):
        words.append(f"heard {row['heard']} ago" if row["heard"][-1:] in "smhdy" else f"heard {row['heard']}")
    if count := row["applications"]:
        words.append(f"{count} app{'s' if count != 1 else ''}, {row['instances']} running" + ("" if ready else " by its last report"))
    if row["brokenHop"] and not ready:
        words.append(f"broken: {row['brokenHop']}")
    if row["since"]:
        words.append(f"silent since {row['since']}")
    if row["adoptedBy"]:
        words.append(f"adopted by {row['adoptedBy']}")
    if wide:
        words.append(f"{row['nodesReady']}/{row['nodes']} nodes  {row['shim'] or 'no shim'}  {row['version']}  age {row['age']}")
        words.append(",".join(f"{key}={value}" for key, value in sorted(row["labels"].items())))
    children = [_branch(child, width, depth + 1, wide=wide) for child in row["children"]] if depth < DEPTH_LIMIT else []
    return Branch("  ".join(filter(None, words)).rstrip(), "good" if ready else "bad", [], children)


def _prune(branch: Branch) -> bool:
    """Keep what is bad and the way to it."""
    branch.children = [child for child in branch.children if _prune(child)]
    return branch.mood == "bad" or bool(branch.children)
