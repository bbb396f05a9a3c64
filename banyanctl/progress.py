"""A model's files hop by hop, as each controller on the way says of itself; one that is out of reach is a row that says so."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from banyanctl import kinds, output
from banyanctl.client import Client
from banyanctl.tree import read_rows
from cluster_controller.errors import BanyanError

AT_ONCE = 8  # controllers that are asked
DIGESTS = 50  # in one question
SECONDS = 10.0  # for one answer
STATES = ("Waiting", "Arriving", "Partial", "Missing", "Here")  # the first that a file is in is that of all


def read(client: Client, files: Sequence[Mapping[str, Any]], most: int) -> list[dict[str, Any]]:
    """One row for each controller, from the top: cluster, state, files and bytes that are there, rate, how far above they come from."""
    from banyanctl.objects import AS_TABLE

    sizes = {str(file["sha256"]): int(file["size"]) for file in files}
    rows = read_rows(client.pages(kinds.path(kinds.find("clusters"), ""), {"includeObject": "Object"}, AS_TABLE))
    rows = sorted(rows, key=lambda row: (len(row["path"]), row["name"]))[:most]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda row: _hop(client, str(row["name"]), bool(row["path"]), sizes), rows))


def _hop(client: Client, cluster: str, below: bool, sizes: Mapping[str, int]) -> dict[str, Any]:
    path, digests = kinds.path(kinds.find("clusters"), "", cluster, "transfers"), list(sizes)
    items: list[dict[str, Any]] = []
    try:
        with (client.at(cluster) if below else client).copy(timeout=SECONDS) as asking:
            for start in range(0, len(digests), DIGESTS):
                items += asking.json("GET", path, {"sha256": ",".join(digests[start : start + DIGESTS])})["items"]
    except BanyanError as error:
        return {"cluster": cluster, "state": "Unknown", "reason": str(error)}
    state = next((state for state in STATES if any(item["state"] == state for item in items)), "Missing")
    return {
        "cluster": cluster,
        "state": state,
        "files": sum(item["state"] == "Here" for item in items),
        "ofFiles": len(sizes),
        "received": sum(item["received"] for item in items),
        "size": sum(sizes.values()),
        "bytesPerSecond": sum(item["bytesPerSecond"] for item in items),
        "hopsAbove": max((item["hopsAbove"] for item in items), default=0),
        "reason": next((item["reason"] for item in items if item["reason"]), ""),
    }


def show(hops: Sequence[Mapping[str, Any]]) -> None:
    output.table(["CLUSTER", "STATE", "FILES", "BYTES", "RATE", "FROM", "REASON"], [_row(hop) for hop in hops])


def _row(hop: Mapping[str, Any]) -> list[str]:
    if hop["state"] == "Unknown":
        return [hop["cluster"], "Unknown", "", "", "", "", hop["reason"]]
    share = 100 * hop["received"] // hop["size"] if hop["size"] else 100
    rate = f"{output.size(hop['bytesPerSecond'])}/s" if hop["bytesPerSecond"] else ""
    above = {0: "", 1: "parent"}.get(hop["hopsAbove"], f"{hop['hopsAbove']} hops above")
    amount = f"{output.size(hop['received'])} of {output.size(hop['size'])} ({share} %)"
    return [hop["cluster"], hop["state"], f"{hop['files']}/{hop['ofFiles']}", amount, rate, above, hop["reason"]]
