"""Whose a member is: one controller at a time, by a Lease whose rules the API server keeps."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller import clock
from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import owner
from cluster_shim.kubernetes.api import ApiError
from cluster_shim.kubernetes.owner import CEASED_SECONDS, GIVE_WAY_SECONDS, PATH, Lease, Owner, Tenure, judge

ONE, OTHER = Owner("uid-one", "edge-1"), Owner("uid-other", "edge-9")


class Leases:
    """What an API server does with one Lease: it has a version, and who does not know it changes nothing."""

    url = "https://site:6443"

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.version = 0
        self.refuse: ApiError | None = None

    async def request(self, method: str, path: str, *, body: bytes | None = None) -> bytes:
        if self.refuse is not None:
            raise self.refuse
        assert path == (PATH if method == "POST" else f"{PATH}/banyan-owner")
        if method == "GET":
            if self.lease is None:
                raise ApiError("not found", status=404)
            return msgspec.json.encode(self.lease)
        assert body is not None
        made = msgspec.json.decode(body, type=Lease)
        if method == "POST" and self.lease is not None:
            raise ApiError("there is one", status=409)
        if method == "PUT" and (self.lease is None or made.metadata.resource_version != self.lease.metadata.resource_version):
            raise ApiError("conflict or not found", status=404 if self.lease is None else 409)
        self.version += 1
        meta = msgspec.structs.replace(made.metadata, resource_version=str(self.version))
        self.lease = msgspec.structs.replace(made, metadata=meta)
        return msgspec.json.encode(self.lease)

    @property
    def holder(self) -> str:
        return self.lease.uid if self.lease is not None else ""


class Time:
    now = 1000.0


@pytest.fixture(autouse=True)
def time(monkeypatch: pytest.MonkeyPatch) -> Iterator[Time]:
    time = Time()
    monkeypatch.setattr(clock, "boottime", lambda: time.now)
    monkeypatch.setattr(owner, "RENEW_SECONDS", 0.0)
    yield time


def claim(tenure: Tenure, leases: Leases) -> None:
    asyncio.run(tenure.claim(cast("Any", leases)))


def keep(tenure: Tenure, leases: Leases) -> ShimError:
    """Renew until it is lost; why."""

    async def run() -> ShimError:
        lost: list[ShimError] = []
        async with asyncio.timeout(10):
            await tenure.keep(cast("Any", leases), lost.append)
        (error,) = lost
        return error

    return asyncio.run(run())


def test_a_second_controller_is_refused_and_told_whose_it_is_and_what_to_do() -> None:
    leases = Leases()
    claim(Tenure(ONE), leases)
    with pytest.raises(ShimError) as refused:
        claim(Tenure(OTHER), leases)
    said = str(refused.value)
    assert "edge-1 (uid-one)" in said
    assert "--kubernetes take_over=uid-one" in said
    assert leases.holder == "uid-one"


def test_it_is_refused_however_long_the_first_one_is_silent(time: Time) -> None:
    leases = Leases()
    claim(Tenure(ONE), leases)
    tenure = Tenure(OTHER, take_over="somebody-else")
    for _ in range(3):
        time.now += 1_000_000.0
        with pytest.raises(ShimError, match="uid-one"):
            claim(tenure, leases)


def test_the_same_controller_goes_on_at_once_after_a_crash_or_a_restored_backup() -> None:
    leases = Leases()
    claim(Tenure(ONE), leases)
    before = leases.lease
    claim(Tenure(ONE), leases)
    assert leases.lease is not None and before is not None
    assert leases.lease.spec.acquire_time == before.spec.acquire_time
    assert leases.lease.spec.lease_transitions == 0


def test_who_is_named_gives_way_and_is_given_time_to_notice(time: Time) -> None:
    leases = Leases()
    first, second = Tenure(ONE, take_over="uid-other"), Tenure(OTHER, take_over="uid-one")
    claim(first, leases)
    with pytest.raises(ShimError, match="was taken over from uid-one"):
        claim(second, leases)
    assert leases.holder == "uid-other"
    assert "edge-9 (uid-other)" in str(keep(first, leases))
    time.now += GIVE_WAY_SECONDS
    claim(second, leases)
    assert leases.lease is not None
    assert leases.lease.spec.lease_transitions == 1


def test_of_two_with_one_uid_the_later_one_has_it_until_it_is_silent(time: Time) -> None:
    leases = Leases()
    first, copy = Tenure(ONE), Tenure(ONE)
    claim(first, leases)
    claim(copy, leases)
    assert "data folder in use twice" in str(keep(first, leases))
    for _ in range(5):  # the copy renews, so it keeps it
        time.now += CEASED_SECONDS
        claim(copy, leases)
        with pytest.raises(ShimError, match="data folder in use twice"):
            claim(first, leases)
    time.now += CEASED_SECONDS
    claim(first, leases)
    assert "data folder in use twice" in str(keep(copy, leases))


def test_a_server_that_is_away_or_a_lease_that_was_removed_loses_nothing() -> None:
    leases = Leases()
    tenure = Tenure(ONE)
    claim(tenure, leases)

    async def run() -> None:
        lost: list[ShimError] = []
        keeping = asyncio.create_task(tenure.keep(cast("Any", leases), lost.append))
        async with asyncio.timeout(10):
            leases.refuse = ApiError("does not answer")
            await asyncio.sleep(0.02)
            leases.refuse = None
            leases.lease = None
            while leases.lease is None:
                await asyncio.sleep(0)
        keeping.cancel()
        await asyncio.wait([keeping])
        assert not lost

    asyncio.run(run())
    assert leases.holder == "uid-one"


def test_without_the_right_it_is_managed_unguarded_and_a_server_that_fails_is_an_error() -> None:
    leases = Leases()
    leases.refuse = ApiError("forbidden", status=403)
    tenure = Tenure(ONE)
    claim(tenure, leases)
    asyncio.run(tenure.keep(cast("Any", leases), lambda error: pytest.fail(str(error))))
    leases.refuse = ApiError("the disk of etcd is full", status=500)
    with pytest.raises(ShimError, match="disk of etcd"):
        claim(tenure, leases)


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=12))
def test_nobody_has_it_against_the_will_of_its_owner(steps: list[tuple[int, bool]]) -> None:
    """Whatever the order in which controllers start and are told to take over, the holder changes only by being named."""
    owners = [Owner(f"uid-{number}") for number in range(3)]
    leases = Leases()
    for number, take in steps:
        before = leases.holder
        named = before if take else ""
        with contextlib.suppress(ShimError):
            claim(Tenure(owners[number], take_over=named), leases)
        assert leases.holder in (before, owners[number].uid)
        assert leases.holder == before or not before or take


def test_who_may_have_it() -> None:
    lease = Lease(spec=owner._Spec(holder_identity="uid-one"), metadata=owner._Meta(annotations={owner.INSTANCE: "i"}))
    assert judge(None, ONE, "i", "") == "free"
    assert judge(Lease(), ONE, "i", "") == "free"
    assert judge(lease, ONE, "i", "") == "mine"
    assert judge(lease, ONE, "j", "") == "another start of mine"
    assert judge(lease, OTHER, "i", "uid-one") == "given up"
    assert judge(lease, OTHER, "i", "uid-two") == "taken"
