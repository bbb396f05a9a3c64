"""A session with a member, where it can be tried without one: what becomes of a Work whose applying fails."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster_controller import tasks
from cluster_shim.contract import Component, Desired, Work
from cluster_shim.kubernetes import session
from cluster_shim.kubernetes.api import Access, Api
from cluster_shim.kubernetes.health import Blind
from cluster_shim.kubernetes.picture import Picture
from cluster_shim.kubernetes.status import Trouble

KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "it", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "it", "user": {"token": "none"}}],
    "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    "current-context": "it",
}


class Defective:
    """An applier that breaks twice in a way that nobody has foreseen."""

    def __init__(self) -> None:
        self.tries = self.hurried = 0
        self.done = asyncio.Event()

    async def apply(self, work: Work) -> dict[str, Trouble]:
        self.tries += 1
        if self.tries < 3:
            raise KeyError("unforeseen")
        self.done.set()
        return {}

    async def remove(self, uid: str) -> bool:
        return True

    def uids(self) -> set[str]:
        return set()

    def hurry(self) -> None:
        self.hurried += 1

    def held(self, uid: str) -> dict[str, Trouble]:
        return {}


def test_a_defect_leaves_no_work_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "RETRY_SECONDS", (0.001, 0.002))
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(KUBECONFIG), encoding="utf-8")
    work = Work(
        uid="u1", name="web", namespace="default", origin="root", version=1, components=(Component(name="main", replicas=1, revision="r1"),)
    )

    async def run() -> None:
        api = Api(Access(kubeconfig=str(kubeconfig)))
        applier = Defective()
        picture = Picture(api, lambda uids: None, lambda: None, {})  # never started: nobody answers there
        it = session.Session(picture, applier, lambda: None)

        async def desired() -> AsyncIterator[Desired]:
            yield Desired(works=(work,), full=True)
            await asyncio.Event().wait()

        news = it.run(desired())
        asking = asyncio.ensure_future(anext(news))
        try:
            async with asyncio.timeout(30):
                await applier.done.wait()
        finally:
            asking.cancel()
            await asyncio.wait((asking,))
            await news.aclose()
            await picture.close()
            await api.close()
        assert applier.tries == 3

    before = tasks.crashes["shim/kubernetes/session"]
    asyncio.run(run())
    assert tasks.crashes["shim/kubernetes/session"] == before + 2
    tasks.crashes["shim/kubernetes/session"] = before  # foreseen here


def test_when_sight_returns_everything_that_is_watched_is_watched_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an API server's machine was told to forget, it does not say that it has forgotten."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(KUBECONFIG), encoding="utf-8")

    async def run() -> None:
        api = Api(Access(kubeconfig=str(kubeconfig)))
        applier, blind = Defective(), [Blind("10:00", "no answer")]
        picture = Picture(api, lambda uids: None, lambda: None, {})
        hurried: list[str] = []
        for informer in picture.informers():
            monkeypatch.setattr(informer, "hurry", lambda path=informer.path: hurried.append(path))
        it = session.Session(picture, applier, lambda: blind[0] if blind else None)
        it.sight_changed()
        assert (hurried, applier.hurried) == ([], 0)
        blind.clear()
        it.sight_changed()
        assert hurried == [informer.path for informer in picture.informers()]
        assert applier.hurried == 1
        await picture.close()
        await api.close()

    asyncio.run(run())
