"""The load that is put on a tree: nothing is left out, nothing that is missing counts as quick."""

import asyncio

import pytest

from benchmarks import load, standin
from benchmarks.lists import ASKED
from benchmarks.load import Arrivals
from cluster_shim.contract import Component, Desired, Observed, Work


def test_arrivals_count_the_first_sight_of_what_was_begun() -> None:
    async def main() -> list[float]:
        arrivals = Arrivals()
        arrivals.began["a"] = 1.0
        arrivals.began["b"] = 2.0
        arrivals.arrived("a", 1.5)
        arrivals.arrived("a", 9.0)
        arrivals.arrived("never begun", 9.0)
        asyncio.get_running_loop().call_soon(arrivals.arrived, "b", 2.25)
        return await arrivals.milliseconds()

    assert asyncio.run(main()) == [500.0, 250.0]


def test_a_change_that_never_arrives_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "ARRIVE_SECONDS", 0.0)

    async def main() -> None:
        arrivals = Arrivals()
        arrivals.began["lost"] = 1.0
        await arrivals.milliseconds()

    with pytest.raises(RuntimeError, match="1 of 1 changes never arrived, first lost"):
        asyncio.run(main())


def test_a_paced_load_leaves_no_change_out() -> None:
    done: list[int] = []

    async def act(number: int) -> None:
        done.append(number)

    asyncio.run(load.paced(50, 10_000.0, act))
    assert done == list(range(50))


LISTED = "https://127.0.0.1:1/api/v1/namespaces/default/configmaps?continue=x&limit=500"


@pytest.mark.parametrize(
    "line",
    [
        f"I1121 11:00:00.000000    1 round_trippers.go:553] GET {LISTED} 200 OK in 12 milliseconds",
        f'I1121 round_trippers.go:632] "Response" verb="GET" url="{LISTED}" status="200 OK" headers="" milliseconds=12',
    ],
)
def test_both_ways_in_which_kubectl_tells_how_long_a_request_took_are_read(line: str) -> None:
    assert [old or new for old, new in ASKED.findall(line)] == ["12"]


def test_a_stand_in_says_that_everything_is_ready_until_it_is_told_otherwise() -> None:
    work = Work(uid="u", name="a", namespace="n", origin="o", version=3, components=(Component(name="c", replicas=2, revision="r"),))

    async def main() -> list[Observed]:
        shim = standin.StandIn()
        more: asyncio.Queue[Desired] = asyncio.Queue()

        async def desired():  # type: ignore[no-untyped-def]
            while True:
                yield await more.get()

        more.put_nowait(Desired(works=(work,), full=True))
        news = shim.reconcile(desired())
        seen = [await anext(news)]
        shim.flip("u", ready=False)
        seen.append(await anext(news))
        more.put_nowait(Desired(removed=("u",)))
        seen.append(await anext(news))
        await news.aclose()  # type: ignore[attr-defined]
        return seen

    first, flipped, gone = asyncio.run(main())
    assert first.full
    assert first.nodes is not None
    assert [(one.uid, one.version, one.components[0].ready) for one in first.works] == [("u", 3, 2)]
    assert [(one.components[0].desired, one.components[0].ready) for one in flipped.works] == [(2, 0)]
    assert gone.removed == ("u",)
