"""An application under load in the four LoadGen scenarios, through the tree, and what that costs each controller on the way.

| scenario | who asks | what counts |
|---|---|---|
| SingleStream | one person: the next request when the last is answered | how long an answer takes |
| MultiStream | a device with eight cameras: eight at once, again when all are answered | the same, of the eight |
| Server | many people: at random moments, at a rate that is said | how long 99 of 100 take at that rate |
| Offline | a heap of work: as many at a time as there are connections | answers a second |
"""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec

import msgspec

from banyanctl.bench import loadgen, machine, record
from banyanctl.bench.loadgen import SCENARIOS, Outcome, Plan
from banyanctl.bench.record import Row
from banyanctl.client import Client
from cluster_controller.errors import BanyanError, InvalidInput, Unreachable

PACKAGE = "mlperf_loadgen"
REMEDY = "the LoadGen scenarios need MLCommons' LoadGen: pip install 'banyan-edge[bench]'"
START_SECONDS = 60.0
METRIC = "banyan_processor_seconds_total"


class Answer(msgspec.Struct):
    trouble: str
    outcomes: list[Outcome]


def chosen(words: Sequence[str]) -> list[str]:
    """Scenarios by their names, in any case; all without a word."""
    by_name = {name.lower(): name for name in SCENARIOS}
    unknown = [word for word in words if word.lower() not in by_name]
    if unknown:
        raise InvalidInput(f"--scenario: there is no LoadGen scenario {unknown[0]!r}; there are: {', '.join(SCENARIOS)}", "--scenario")
    return list(dict.fromkeys(by_name[word.lower()] for word in words)) or list(SCENARIOS)


def needed() -> None:
    """InvalidInput with the remedy where LoadGen is not installed."""
    if find_spec(PACKAGE) is None:
        raise InvalidInput(REMEDY, "--application")


def measure(client: Client, plan: Plan, say: Callable[[str], None]) -> tuple[list[Row], list[str]]:
    """Rows of each scenario in turn, and remarks for people."""
    rows: list[Row] = []
    remarks: list[str] = []
    route: list[str] = []
    for name in plan.scenarios:
        say(f"{name}, {plan.seconds:g} s")
        before, spent_before = machine.reading(), processor(client, route)
        outcome = play(msgspec.structs.replace(plan, scenarios=[name]))
        after, spent_after = machine.reading(), processor(client, route)
        rows += shown(outcome)
        if outcome.failed:
            remarks.append(
                f"{name}: {outcome.failed} of {outcome.failed + outcome.answers} requests failed, the first with {outcome.trouble}"
            )
        if not outcome.valid:
            remarks.append(f"{name}: LoadGen does not take this for a steady run{_because(outcome)}; --seconds makes it longer")
        for cluster, seconds in spent_after.items():
            if cluster in spent_before and outcome.answers:
                each = 1000 * (seconds - spent_before[cluster]) / outcome.answers
                rows.append(record.row(f"{name}: processor time of {cluster} for an answer", [each], "ms of processor"))
        rows += own(name, outcome, machine.spent(before, after))
        route = route or [word.strip() for word in outcome.route.split(",") if word.strip()]
    if not any(row.unit == "J" for row in rows):
        remarks.append(f"no energy: {machine.why_no_energy()}")
    return rows, remarks


def _because(outcome: Outcome) -> str:
    return f" ({outcome.because.strip()})" if outcome.because.strip() else ""


def play(plan: Plan) -> Outcome:
    argv = [sys.executable, "-m", loadgen.__name__]
    limit = START_SECONDS + 4 * plan.seconds + 2 * plan.timeout
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            out, trouble = process.communicate(msgspec.json.encode(plan), limit)
        except subprocess.TimeoutExpired as error:
            raise Unreachable(f"the scenario {plan.scenarios[0]} did not end within {limit:.0f} s: its answers do not come") from error
        finally:
            process.kill()  # also when a person has had enough: LoadGen's own threads hear no Ctrl-C
    try:
        answer = msgspec.json.decode(out, type=Answer)
    except msgspec.MsgspecError as error:
        raise BanyanError(f"LoadGen ended by itself: {trouble.decode('utf-8', 'replace').strip()[-500:]}") from error
    if answer.trouble:
        raise Unreachable(f"the application does not answer {plan.method} {plan.path}: {answer.trouble}")
    return answer.outcomes[0]


def shown(outcome: Outcome) -> list[Row]:
    """What the scenario is about, with the unit that it counts in."""
    if not outcome.latencies_ms:
        return []
    name, taken = outcome.scenario, outcome.latencies_ms
    rate = record.row(f"{name}: answers", [outcome.rate], "/s", compared=name != "Server")  # there the rate is what was asked for
    rows = [rate] if name == "Offline" else [record.row(f"{name}: an answer", taken, "ms"), rate]
    if name == "Server":
        ordered = sorted(taken)
        p99 = ordered[-(-len(ordered) * 99 // 100) - 1]
        rows.insert(1, record.row(f"{name}: 99 of 100 answers", [p99], "ms", f"at {outcome.wanted_rate:.3g} requests/s", compared=False))
    return rows


def own(name: str, outcome: Outcome, spent: machine.Spent) -> list[Row]:
    """Of the machine that asks, whatever it did beside."""
    busy = 100 * spent.busy_seconds / spent.seconds
    rows = [record.row(f"{name}: this machine's processors", [busy], "% of a core", compared=False)]
    if spent.joules is not None and outcome.answers:
        rows.append(record.row(f"{name}: energy of this machine for an answer", [spent.joules / outcome.answers], "J", compared=False))
    return rows


def processor(client: Client, route: Sequence[str]) -> Mapping[str, float]:
    """Seconds of processor time by controller: the entry, and those on the way that are known; without those that may not be asked."""
    found = {}
    for number, name in enumerate(route or ["the controller that is asked"]):
        there = client.at(name) if number else client
        try:
            answer = there.request("GET", "/metrics")
        except BanyanError:
            continue
        finally:
            if number:
                there.close()
        for line in answer.body.decode("utf-8", "replace").splitlines():
            if line.startswith(f"{METRIC} "):
                found[name] = float(line.rpartition(" ")[2])
    return found
