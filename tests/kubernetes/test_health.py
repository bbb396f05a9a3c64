"""When a member is out of sight, and which cluster it is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import health
from cluster_shim.kubernetes.health import BLIND_SECONDS, Blind, Sight


def api(uid: str) -> Any:
    return cast("Any", SimpleNamespace(cluster_uid=uid, url="https://site:6443"))


def test_one_answer_that_does_not_come_is_no_blindness() -> None:
    sight = Sight(100.0, "10:00")
    assert not sight.failed(100.0 + BLIND_SECONDS - 0.1, "slow")
    assert sight.blind is None


def test_out_of_sight_since_it_was_last_seen_and_told_once() -> None:
    sight = Sight(100.0, "10:00")
    assert not sight.answered(104.0, "10:04")
    assert sight.failed(104.0 + BLIND_SECONDS, "no answer")
    assert sight.blind == Blind("10:04", "no answer")
    assert not sight.failed(130.0, "no answer")
    assert sight.failed(140.0, "refused")
    assert sight.blind == Blind("10:04", "refused")
    assert sight.answered(150.0, "10:50")
    assert sight.blind is None
    assert not sight.answered(151.0, "10:51")


def test_the_cluster_is_remembered_and_another_one_refused(tmp_path: Path) -> None:
    folder = tmp_path / "kubernetes"
    health.recognise(folder, api("one"))
    health.recognise(folder, api("one"))
    assert (folder / health.OWN).stat().st_mode & 0o777 == 0o600
    with pytest.raises(ShimError, match="another cluster than the one that was joined") as refused:
        health.recognise(folder, api("two"))
    assert "cluster.json" in str(refused.value)
    health.recognise(folder, api("one"))


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / health.OWN).write_text("[]")
    with pytest.raises(ShimError, match=r"cluster\.json cannot be read"):
        health.recognise(tmp_path, api("one"))
