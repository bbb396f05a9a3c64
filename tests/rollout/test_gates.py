"""Gates: what an exposition says, what a window says, and what a rollout makes of it."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.resources import kinds, validate
from cluster_controller.rollout.gates import Judged, Sample, grown, judge, reading, samples
from cluster_controller.rollout.measuring import Measuring, fetch
from cluster_shim.contract import Instance, OpenTarget, Phase
from cluster_shim.process.streams import SocketStream
from tests.placement.tree import Tree
from tests.rollout.shop import played, put, reasons, rollout, runs, status

ERRORS: dict[str, Any] = {
    "name": "errors",
    "errors": {"metric": "http_requests_total", "labels": {"code": "5*"}},
    "requests": {"metric": "http_requests_total"},
    "max": 0.1,
    "windowSeconds": 30,
}
SLOW: dict[str, Any] = {"latency": {"metric": "seconds"}, "quantile": 0.5, "max": 0.3, "windowSeconds": 30, "minCount": 1}
TEXT = """# HELP http_requests_total Requests.
# TYPE http_requests_total counter
http_requests_total{code="200",path="/a \\"b\\""} 90 1700000000000
http_requests_total{code="503",} 10
http_requests_total{code="oops} 5
process_start_time_seconds 1.7e+09
seconds_bucket{le="0.1"} 2
seconds_bucket{le="0.5"} 8
seconds_bucket{le="+Inf"} 10
nothing
broken NaN
"""


def gate(document: dict[str, Any] = ERRORS, **more: Any) -> kinds.Gate:
    return msgspec.convert(document | more, kinds.Gate)


def taken(*counts: tuple[float, float, float], instance: str = "i") -> list[Sample]:
    return [Sample(time, {instance: {"bad": bad, "all": whole}}) for time, bad, whole in counts]


def test_an_exposition_is_read_series_by_series_and_a_broken_line_costs_no_other() -> None:
    found = list(samples(TEXT))
    assert found[0] == ("http_requests_total", {"code": "200", "path": '/a "b"'}, 90.0)
    assert [name for name, _, _ in found].count("http_requests_total") == 2
    assert reading(gate(), TEXT) == ("1700000000.0", {"all": 100.0, "bad": 10.0})
    assert reading(gate(SLOW), TEXT)[1] == {"le:0.1": 2.0, "le:0.5": 8.0, "le:+Inf": 10.0}
    assert reading(gate(), "other 1\n") == ("", {})
    assert reading(gate(), 'http_requests_total{code="200"} 5\n')[1] == {"all": 5.0, "bad": 0.0}


@given(st.text(max_size=200))
def test_no_text_is_too_strange_to_be_passed_over(text: str) -> None:
    assert all(isinstance(value, float) for _, _, value in samples(text))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8), st.lists(st.booleans(), min_size=8, max_size=8))
def test_what_grew_is_what_was_counted_whenever_a_process_began_anew(steps: list[tuple[int, int]], again: list[bool]) -> None:
    """Of a process that began anew what it counted since is known; a window never loses or invents a request that was seen."""
    counted: list[Sample] = [Sample(0, {"i": {"all": 0.0}})]
    expected = total = 0
    for index, (more, _) in enumerate(steps):
        if again[index]:
            total = 0
        total += more
        expected += more
        counted.append(Sample(index + 1, {"i": {"all": float(total)}}))
    assert grown(counted).get("all", 0.0) <= expected
    if not any(again[: len(steps)]):
        assert grown(counted).get("all", 0.0) == expected


def test_too_bad_is_told_at_once_and_good_only_after_the_window() -> None:
    good, bad = taken((0, 0, 0), (10, 1, 50)), taken((0, 0, 0), (10, 10, 50))
    assert judge(gate(), bad, since=0, now=10).verdict == "Unhealthy"
    assert judge(gate(), bad, since=0, now=10).message == "errors: 0.2 of 50 requests failed, at most 0.1 is allowed"
    assert judge(gate(), good, since=0, now=10).verdict == "Measuring"
    assert judge(gate(), good, since=0, now=30).verdict == "Healthy"
    assert judge(gate(), taken((0, 0, 0), (10, 10, 50), (20, 10, 50), (60, 10, 90)), since=0, now=60).verdict == "Healthy"


def test_little_says_nothing_and_what_was_before_it_was_ready_does_not_count() -> None:
    few = taken((0, 0, 0), (10, 5, 5))
    unknown = judge(gate(), few, since=0, now=30)
    assert unknown.verdict == "Unknown"
    assert "counted 5 requests of at least 20" in unknown.message
    assert judge(gate(), [], since=0, now=30).message.startswith("errors counted nothing in 30 s")
    assert judge(gate(onMissing="Pass"), [], since=0, now=30).verdict == "Healthy"
    assert judge(gate(), taken((0, 0, 0), (10, 50, 50)), since=11, now=12).verdict == "Measuring"


@pytest.mark.parametrize(("quantile", "figure"), [(0.1, 0.05), (0.5, 0.3), (0.8, 0.5), (0.9, math.inf)])
def test_a_quantile_is_taken_between_the_bounds_of_its_bucket(quantile: float, figure: float) -> None:
    counted = {"le:0.1": 2.0, "le:0.5": 8.0, "le:+Inf": 10.0, "le:x": 7.0}
    seen = [Sample(0, {"i": dict.fromkeys(counted, 0.0)}), Sample(10, {"i": counted})]
    found = judge(gate(SLOW, quantile=quantile), seen, since=0, now=30).figure
    assert found == pytest.approx(figure)
    assert judge(gate(SLOW), seen[:1], since=0, now=30).verdict == "Unknown"


EXPOSED = b'http_requests_total{code="500"} 30\nhttp_requests_total{code="200"} 10\n'


def instance(name: str = "i-1") -> Instance:
    return Instance(id=name, component="serve", revision="r", phase=Phase.RUNNING, ready=True)


async def served(bodies: Sequence[bytes], *, close: bool = True) -> tuple[asyncio.Server, Any]:
    """A server that answers one body after the other, and how a stream to it is opened."""
    left = list(bodies)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        await writer.drain()
        if not close:
            await reader.read()  # until the other side goes
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def opened(target: OpenTarget) -> SocketStream:
        return SocketStream(*await asyncio.open_connection("127.0.0.1", port))

    return server, opened


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def test_instances_are_asked_in_person_and_a_verdict_that_changes_is_told() -> None:
    async def main() -> None:
        now = 0.0
        told: list[str] = []
        server, opened = await served([ok(b'http_requests_total{code="200"} 0\n'), ok(EXPOSED)])
        measuring = Measuring(opened, lambda: [("app", instance()), ("other", instance("i-2"))], told.append, lambda: now)
        assert measuring.judge("app", "v1", [gate()], ["serve"]).verdict == "Measuring"
        await measuring.look("app")
        assert told == []
        now = 5.0
        await measuring.look("app")
        assert told == ["app"]
        assert measuring.judge("app", "v1", [gate()], ["serve"]).verdict == "Unhealthy"
        assert measuring.judge("app", "v2", [gate()], ["serve"]).verdict == "Measuring"  # another version begins anew
        measuring.forget("app")
        await measuring.look("app")
        server.close()

    asyncio.run(main())


def test_what_cannot_be_read_is_missing_and_nothing_worse() -> None:
    async def main() -> None:
        now = 0.0
        server, opened = await served([b"HTTP/1.1 404 No\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe"])
        measuring = Measuring(opened, lambda: [("app", instance())], lambda app: None, lambda: now)
        measuring.judge("app", "v1", [gate()], ["serve"])
        for _ in range(3):
            await measuring.look("app")
        now = 31.0
        assert measuring.judge("app", "v1", [gate()], ["serve"]).verdict == "Unknown"
        server.close()

    asyncio.run(main())


def test_an_answer_is_whole_when_its_length_is_there_though_the_connection_stays() -> None:
    async def main() -> None:
        server, opened = await served([ok(EXPOSED)], close=False)
        stream = await opened(OpenTarget("application"))
        assert await asyncio.wait_for(fetch(stream, "/metrics"), 10) == EXPOSED.decode()
        stream.abort()
        server.close()
        await asyncio.sleep(0.05)  # the server's side sees the end

    asyncio.run(main())


def test_a_version_that_its_gate_refuses_stops_at_its_wave_and_goes_back(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        said = {"now": Judged("Measuring", None, "errors is measured for 30 s")}
        for site in tree.sites.values():
            site.engine.measured_by(lambda *_: said["now"], lambda application: None)
        plan = {"wave": 1, "rollback": "Automatic", "gates": [ERRORS]}
        await put(root, "v1", plan)
        await tree.quiet()
        assert (runs(tree), rollout(root).phase) == (["v1"] * 3, "Complete")  # the first version has nothing to be compared with
        await put(root, "v2", plan)
        await tree.quiet()
        await tree.wait(10_000)  # what is measured is not late
        await tree.quiet()
        assert runs(tree) == ["v2", "v1", "v1"]
        assert "errors is measured for 30 s" in rollout(root).message
        said["now"] = Judged("Healthy", 0.0, "errors: 0")
        tree.sites["edge-1"].engine.look_at("app-shop")
        await tree.settled()
        await tree.quiet()
        assert (runs(tree), rollout(root).phase) == (["v2"] * 3, "Complete")
        said["now"] = Judged("Unhealthy", 0.5, "errors: 0.5 of 50 requests failed")
        await put(root, "v3", plan)
        await tree.quiet()
        assert runs(tree) == ["v2"] * 3
        assert "RolledBack" in reasons(root)
        assert "errors: 0.5 of 50 requests failed" in rollout(root).message
        said["now"] = Judged("Unknown", None, "errors counted nothing in 30 s")
        await put(root, "v4", plan)
        await tree.quiet()
        assert runs(tree) == ["v4", "v2", "v2"]
        assert "errors counted nothing" in rollout(root).message
        assert status(root).phase == "Progressing"

    played(main, tmp_path)


def test_a_cut_off_region_judges_by_itself(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        said = {"now": Judged("Measuring", None, "measured")}
        for site in tree.sites.values():
            site.engine.measured_by(lambda *_: said["now"], lambda application: None)
        plan = {"wave": 1, "gates": [ERRORS]}
        for program in ("v1", "v2"):
            await put(root, program, plan)
            await tree.quiet()
        tree.set_cut("region", True)
        said["now"] = Judged("Healthy", 0.0, "good")
        tree.sites["edge-1"].engine.look_at("app-shop")
        await tree.settled()
        await tree.quiet()
        assert runs(tree) == ["v2"] * 3

    played(main, tmp_path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"errors": None, "requests": None}, "spec.rollout.gates[0]"),
        ({"latency": {"metric": "seconds"}}, "spec.rollout.gates[0]"),
        ({"requests": None}, "spec.rollout.gates[0].requests"),
        ({"component": "db"}, "spec.rollout.gates[0].component"),
        ({"path": "metrics"}, "spec.rollout.gates[0].path"),
        ({"max": 5}, "spec.rollout.gates[0].max"),
        ({"errors": {"metric": "a b"}}, "spec.rollout.gates[0].errors.metric"),
    ],
)
def test_a_gate_that_could_judge_nothing_is_refused(change: dict[str, Any], field: str) -> None:
    wanted = {key: value for key, value in {**ERRORS, **change}.items() if value is not None}
    document = {
        "apiVersion": "banyan.dev/v1alpha1", "kind": "Application", "metadata": {"name": "a", "namespace": "default"},
        "spec": {"components": [{"name": "serve", "command": ["x"]}], "rollout": {"gates": [wanted]}},
    }  # fmt: skip
    with pytest.raises(validate.InvalidDocument) as caught:
        validate.check("Application", document)
    assert caught.value.problems[0].field == field


def test_gates_are_few_and_have_names_of_their_own() -> None:
    document: dict[str, Any] = {
        "apiVersion": "banyan.dev/v1alpha1", "kind": "Application", "metadata": {"name": "a", "namespace": "default"},
        "spec": {"components": [{"name": "serve", "command": ["x"]}], "rollout": {"gates": [ERRORS] * 11}},
    }  # fmt: skip
    with pytest.raises(validate.InvalidDocument, match="at most 10"):
        validate.check("Application", document)
