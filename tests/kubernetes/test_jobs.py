"""A Job that has run and is gone is not made again, and nothing else is forgotten or remembered for ever."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from cluster_shim.kubernetes import jobs as module
from cluster_shim.kubernetes import plan
from cluster_shim.kubernetes.jobs import FILE, Jobs
from cluster_shim.kubernetes.plan import Item
from cluster_shim.kubernetes.render import Rendered
from cluster_shim.kubernetes.seen import Key, Seen
from tests.kubernetes.test_plan import UID, there


def job(name: str = "j", *, ttl: int | None = 0, **spec: object) -> Item:
    made = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}}
    more = {"ttlSecondsAfterFinished": ttl} if ttl is not None else {}
    return plan.complete(Rendered({**made, "spec": spec | more}, "c", 5), "batch", True, "default", "set")


def wanted(jobs: Jobs, item: Item, found: Seen | None = None) -> list[str]:
    """What a plan would do about it."""
    seen = {item.key: found} if found is not None else {}
    return [step.action for step in plan.plan(UID, [item], seen, {}, (), jobs.marks()).steps]


def kept(path: Path) -> Jobs:
    jobs = Jobs(path)
    jobs.load()
    return jobs


def test_one_that_removed_itself_does_not_run_again_also_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "site" / FILE
    jobs, made = kept(path), job()
    assert wanted(jobs, made) == ["create"]
    jobs.there(made, there(made))
    jobs.gone(made.key, there(made, finished="Complete"), watched=True)
    assert wanted(jobs, made) == []
    asyncio.run(jobs.save())
    assert path.stat().st_mode & 0o777 == 0o600
    again = kept(path)
    assert wanted(again, made) == []
    assert not again.failed(made.key)
    assert wanted(again, job(parallelism=2)) == ["create"], "another template is another Job"


def test_one_that_ended_while_nobody_looked_does_not_run_again(tmp_path: Path) -> None:
    """The controller was down, or the API server out of sight: a Job that removes itself is gone because it is over."""
    jobs, made, stays = kept(tmp_path / FILE), job(), job("stays", ttl=None)
    for one in (made, stays):
        jobs.there(one, there(one))
        jobs.gone(one.key, there(one), watched=False)
    assert wanted(jobs, made) == []
    assert wanted(jobs, stays) == ["create"], "one that does not remove itself was deleted by somebody"


def test_one_that_is_deleted_in_the_middle_is_made_again(tmp_path: Path) -> None:
    jobs, made = kept(tmp_path / FILE), job()
    jobs.there(made, there(made))
    jobs.gone(made.key, there(made), watched=True)
    assert wanted(jobs, made) == ["create"]


def test_one_that_failed_is_known_to_have(tmp_path: Path) -> None:
    jobs, made = kept(tmp_path / FILE), job()
    jobs.gone(made.key, there(made, finished="Failed"), watched=True)
    assert wanted(jobs, made) == []
    assert jobs.failed(made.key) and not jobs.failed(Key("batch", "Job", "default", "other"))


def test_what_is_wanted_no_more_is_forgotten_and_another_application_runs_its_own(tmp_path: Path) -> None:
    jobs, one, two = kept(tmp_path / FILE), job("one"), job("two")
    for made in (one, two):
        jobs.there(made, there(made))
    others = job("others")
    jobs.there(others, there(others, uid="app-2"))
    jobs.keep(UID, {two.key})
    assert set(jobs.marks()) == {two.key, others.key}
    jobs.keep(UID, ())
    assert set(jobs.marks()) == {others.key}


def test_what_is_not_a_job_or_not_as_it_was_applied_is_not_remembered(tmp_path: Path) -> None:
    jobs, made = kept(tmp_path / FILE), job()
    jobs.there(made, there(made, applied="something else"))
    thing = msgspec.structs.replace(made, key=Key("x.io", "Job", "default", "j"))
    jobs.there(thing, there(thing))
    assert jobs.marks() == {}


def test_so_many_are_remembered_and_the_longest_known_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    jobs, made = kept(tmp_path / FILE), [job(name) for name in "abcd"]
    for one in made:
        jobs.there(one, there(one))
    assert list(jobs.marks()) == [one.key for one in made[1:]]


def test_a_record_that_cannot_be_read_or_written_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text("{")
    jobs, made = kept(path), job()
    assert jobs.marks() == {}
    path.unlink()
    path.mkdir()
    jobs.there(made, there(made))
    asyncio.run(jobs.save())
    assert set(jobs.marks()) == {made.key}
    path.rmdir()
    asyncio.run(jobs.save())
    assert kept(path).marks() == jobs.marks(), "it is tried again"
