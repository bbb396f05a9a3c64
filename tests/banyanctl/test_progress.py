"""What `banyan model status` makes of what the hops say."""

from pathlib import Path
from typing import Any

import pytest

from banyanctl import progress
from cluster_controller.errors import Unreachable

FILES = [{"sha256": letter * 64, "size": 100} for letter in "ab"]


class Asked:
    """A controller that answers for itself and for those below it."""

    endpoint = None

    def __init__(self, items: dict[str, list[dict[str, Any]]], where: str = "root") -> None:
        self._items, self._where = items, where

    def pages(self, *_: object) -> list[dict[str, Any]]:
        rows = [
            {"cells": [], "object": {"metadata": {"name": name}, "status": {"path": [] if name == "root" else ["root"]}}}
            for name in self._items
        ]
        return [{"columnDefinitions": [], "rows": rows}]

    def at(self, cluster: str) -> "Asked":
        return Asked(self._items, cluster)

    def copy(self, timeout: float) -> "Asked":
        return self

    def __enter__(self) -> "Asked":
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def json(self, method: str, path: str, query: dict[str, str]) -> dict[str, Any]:
        assert path.endswith(f"/clusters/{self._where}/transfers")
        assert query["sha256"].split(",") == [file["sha256"] for file in FILES]
        if not self._items[self._where]:
            raise Unreachable(f"{self._where} is out of reach")
        return {"items": self._items[self._where]}


def item(state: str, received: int, rate: int = 0, hops: int = 0, reason: str = "") -> dict[str, Any]:
    return {"sha256": "", "state": state, "size": 100, "received": received, "bytesPerSecond": rate, "hopsAbove": hops, "reason": reason}


def test_each_hop_is_a_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = Asked(
        {
            "edge-1": [item("Here", 100), item("Arriving", 50, rate=2048, hops=2)],
            "edge-2": [],
            "edge-3": [item("Arriving", 10, rate=1, hops=1), item("Waiting", 0, reason="models come within 22:00-06:00 only")],
            "root": [item("Here", 100), item("Here", 100)],
        }
    )
    hops = progress.read(asked, FILES, 100)  # type: ignore[arg-type]
    assert [hop["cluster"] for hop in hops] == ["root", "edge-1", "edge-2", "edge-3"]
    assert [hop["state"] for hop in hops] == ["Here", "Arriving", "Unknown", "Waiting"]
    assert (hops[1]["files"], hops[1]["received"], hops[1]["hopsAbove"]) == (1, 150, 2)
    progress.show(hops)
    said = capsys.readouterr().out
    for words in ("150 B of 200 B (75 %)", "2.0 KiB/s", "2 hops above", "edge-2 is out of reach", "22:00-06:00 only", "parent"):
        assert words in said
    assert len(progress.read(asked, FILES, 2)) == 2  # type: ignore[arg-type]
