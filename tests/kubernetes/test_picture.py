"""What runs, by application: whatever changes about an object, it is in one place, and what was is forgotten."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller import clock
from cluster_shim.kubernetes import names, narrow
from cluster_shim.kubernetes.api import Access, Api
from cluster_shim.kubernetes.informer import Change
from cluster_shim.kubernetes.picture import UNREAD_SECONDS, WORKLOADS, Picture
from tests.kubernetes.documents import pod, workload
from tests.kubernetes.scripted import kubeconfig


class Scene:
    """A picture, what its informers told, and who was said to look different."""

    def __init__(self, api: Api) -> None:
        self.touched: set[str] = set()
        self.picture = Picture(api, self._touch, lambda: None, {})

    def _touch(self, uids: Iterable[str]) -> None:
        self.touched |= set(uids)

    def tell(self, kind: str, *objects: Any) -> set[str]:
        """Whom that touched."""
        self.touched = set()
        for made in objects:
            where = self.picture.pods if isinstance(made, narrow.Pod) else self.picture._workload_informers[made.kind]
            where._tell([Change(kind, made)])  # type: ignore[arg-type]
        return self.touched

    def put(self, *objects: Any) -> set[str]:
        return self.tell("put", *objects)

    def delete(self, *objects: Any) -> set[str]:
        return self.tell("delete", *objects)

    def instances(self, uid: str) -> dict[str, set[str]]:
        return {component: {one.metadata.name for one, _ in pods.values()} for component, pods in self.picture.pods_of(uid).items()}


def played(tmp_path: Path, play: Callable[[Scene], None]) -> None:
    async def main() -> None:
        api = Api(Access(kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1")))  # nobody is asked: it is not started
        scene = Scene(api)
        try:
            play(scene)
        finally:
            await scene.picture.close()
            await api.close()

    asyncio.run(main())


def of(uid: str, component: str = "main") -> dict[str, str]:
    return {names.APPLICATION_UID: uid, names.COMPONENT_LABEL: component} if uid else {}


def kept(name: str, by: str = "web") -> narrow.Pod:
    """A pod that says nothing of itself, of a Job of that name."""
    return pod(name, labels={}, owner={"kind": "Job", "name": by, "controller": True})


def job(owner: str, name: str = "web", uid: str = "w") -> narrow.Workload:
    made = workload("Job")
    return msgspec.structs.replace(made, metadata=msgspec.structs.replace(made.metadata, name=name, uid=uid, labels=of(owner)))


def test_a_pod_that_gets_another_label_is_nobodys_phantom(tmp_path: Path) -> None:
    def play(scene: Scene) -> None:
        scene.put(pod("p", labels=of("a")))
        assert scene.instances("a") == {"main": {"p"}}
        assert scene.put(pod("p", labels=of("b"))) == {"a", "b"}
        assert scene.instances("a") == {} and scene.instances("b") == {"main": {"p"}}
        assert scene.picture.uids() == {"b"}
        assert scene.put(pod("p", labels={})) == {"b"}
        assert scene.picture.uids() == set()
        assert scene.picture.find("", instance="p") == []

    played(tmp_path, play)


def test_a_pod_that_another_workload_keeps_by_now_is_that_ones(tmp_path: Path) -> None:
    def play(scene: Scene) -> None:
        scene.put(job("a", "one", "1"), job("b", "two", "2"), kept("p", "one"))
        assert scene.instances("a") == {"main": {"p"}}
        assert scene.put(kept("p", "two")) == {"a", "b"}
        assert scene.instances("a") == {} and scene.instances("b") == {"main": {"p"}}
        assert scene.delete(kept("p", "one")) == {"b"}, "what it said last is not where it is filed"
        assert scene.instances("b") == {}

    played(tmp_path, play)


def test_a_workload_that_gets_another_owner_takes_its_pods_along(tmp_path: Path) -> None:
    def play(scene: Scene) -> None:
        scene.put(job("a"), kept("p"))
        assert scene.put(job("b")) == {"a", "b"}
        assert scene.picture.uids() == {"b"}
        assert scene.instances("b") == {"main": {"p"}}
        assert [found.metadata.name for _, found in scene.picture.find("", instance="p")] == ["p"]
        assert scene.delete(job("b")) == {"b"}
        assert scene.picture.uids() == set()
        assert scene.picture.find("", instance="p") == []

    played(tmp_path, play)


def test_a_workload_that_was_made_anew_is_there_when_the_old_one_is_said_to_be_gone_afterwards(tmp_path: Path) -> None:
    """A list names what is there before it is known what is not."""

    def play(scene: Scene) -> None:
        scene.put(job("a", uid="old"))
        scene.put(job("a", uid="new"))
        scene.delete(job("a", uid="old"))
        assert scene.picture.uids() == {"a"}
        scene.delete(job("a", uid="new"))
        assert scene.picture.uids() == set()

    played(tmp_path, play)


OWNERS = st.sampled_from(["", "a", "b"])
PODS = st.builds(
    lambda name, owner, by: pod(name, labels=of(owner), owner={"kind": "Job", "name": by, "controller": True} if by else None),
    st.sampled_from("pq"),
    OWNERS,
    st.sampled_from(["", "one", "two"]),
)
JOBS = st.builds(job, st.sampled_from(["a", "b"]), st.sampled_from(["one", "two"]), st.sampled_from(["1", "2"]))


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), PODS | JOBS), max_size=30))
def test_when_everything_is_gone_nothing_is_remembered(tmp_path_factory: Any, steps: list[tuple[bool, Any]]) -> None:
    def play(scene: Scene) -> None:
        there: dict[tuple[str, str], Any] = {}
        for put, made in steps:
            key = (type(made).__name__, made.metadata.name)
            if put:
                there[key] = made
                scene.put(made)
            elif key in there:
                scene.delete(there.pop(key))
            for uid in ("a", "b"):
                found = {name for names_ in scene.instances(uid).values() for name in names_}
                assert found == {
                    one.metadata.name
                    for one in there.values()
                    if isinstance(one, narrow.Pod) and uid in {one.metadata.labels.get(names.APPLICATION_UID), keeper(one, there)}
                }
        scene.delete(*there.values())
        picture = scene.picture
        tables = (picture._filed, picture._ours, picture._by_uid, picture._by_place, picture._workloads, picture._owner)
        assert [len(table) for table in tables] == [0] * 6

    played(tmp_path_factory.mktemp("scene"), play)


def keeper(one: narrow.Pod, there: dict[tuple[str, str], Any]) -> str | None:
    """Whose the workload is that keeps it."""
    by = next((owner.name for owner in one.metadata.owner_references), "")
    found = there.get(("Workload", by))
    return found.metadata.labels.get(names.APPLICATION_UID) if found is not None else None


def silenced(scene: Scene, monkeypatch: pytest.MonkeyPatch, *kinds: str) -> bool:
    """These kinds fail, and it is late; whether the picture shows another thing by it."""
    named: dict[str, Any] = {"Pod": scene.picture.pods, "Node": scene.picture.nodes, **scene.picture._workload_informers}
    for kind, informer in named.items():
        if kind in kinds:
            informer._failed(f"no {kind} today")
        else:
            informer._well()
    now = clock.boottime()
    monkeypatch.setattr(clock, "boottime", lambda: now + UNREAD_SECONDS)
    return scene.picture.look()


def test_a_kind_that_cannot_be_read_hides_what_is_made_of_it_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(scene: Scene) -> None:
        scene.put(job("batch"), pod("p", labels=of("web")))
        scene.put(msgspec.structs.replace(workload("Deployment"), metadata=msgspec.structs.replace(workload().metadata, labels=of("web"))))
        picture = scene.picture
        assert not picture.look() and picture.hidden("web") is None
        assert silenced(scene, monkeypatch, "Job")
        assert picture.failing() == "", "the member is in sight"
        assert picture.hidden("batch") == ("Job", "no Job today") and picture.hidden("web") is None
        assert picture.hidden("new") == ("Job", "no Job today"), "it may be made of it: nobody can say"
        assert not picture.nodes_hidden
        assert not silenced(scene, monkeypatch, "Job"), "told once"
        assert silenced(scene, monkeypatch, "Pod", "Node")
        assert picture.hidden("web") == picture.hidden("batch") == ("Pod", "no Pod today") and picture.nodes_hidden
        assert silenced(scene, monkeypatch)
        assert picture.hidden("batch") is None and not picture.nodes_hidden

    played(tmp_path, play)


def test_only_when_nothing_can_be_read_the_member_is_out_of_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(scene: Scene) -> None:
        silenced(scene, monkeypatch, "Pod", "Node", *WORKLOADS)
        assert scene.picture.failing() == "no Pod today"

    played(tmp_path, play)


def test_a_kind_that_cannot_be_read_keeps_nobody_from_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        api = Api(Access(kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1")))
        scene = Scene(api)
        try:
            for informer in scene.picture.informers():
                if not informer.path.endswith("/jobs"):
                    informer.synced.set()
            silenced(scene, monkeypatch, "Job")
            async with asyncio.timeout(10):
                await scene.picture.synced()
        finally:
            await scene.picture.close()
            await api.close()

    asyncio.run(main())
