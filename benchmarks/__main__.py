"""Measure, and write down: `make bench`, `make bench-NAME`.

    python -m benchmarks all                 every benchmark but the large ones, each in a process of its own, then the report
    python -m benchmarks large               a thousand controllers, ten thousand clusters, a hundred thousand objects; then the report
    python -m benchmarks NAME                one: benchmarks/results/NAME.json and a table
    python -m benchmarks report              docs/performance.md and its charts again, from the result files
    python -m benchmarks check               fails when they are not what the result files say

--quick measures with small counts in seconds: it shows that a benchmark works, its figures mean nothing and go nowhere but to --output.
"""

import argparse
import asyncio
import importlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import structlog

from benchmarks import records, report
from benchmarks.records import Options

# Seconds that each may take on two cores, set-up included; all but the large ones forty minutes. One that takes twice as long is ended.
BUDGET = {
    "footprint": 140, "size": 5, "startup": 20, "idle": 120, "propagation": 180, "three": 120, "relay": 120, "hop": 70, "tunnels": 90,
    "children": 110, "thousand": 110, "simulated": 130, "objects": 50, "burst": 35, "lists": 60, "decode": 55, "serve": 290, "device": 20,
    "models": 200, "placement": 35, "replace": 85, "failover": 120, "healing": 170, "growth": 60, "demo": 90, "members": 130, "crowd": 90,
    "kubectl": 80,
}  # fmt: skip
LONGEST = 40 * 60
INTERRUPTED_SECONDS = 60.0
CLUSTERS = ("members", "crowd", "kubectl")  # on real Kubernetes clusters: `make testbed`
ALONE = (
    "footprint", "size", "startup", "idle", "propagation", "three", "relay", "hop", "tunnels", "children", "thousand", "simulated",
    "objects", "burst", "lists", "decode", "serve", "device", "models", "placement", "replace", "failover", "healing", "growth", "demo",
)  # fmt: skip
NAMES = (*ALONE, *CLUSTERS)
LARGE = ("children", "thousand", "simulated", "objects")  # seven minutes more, by themselves: `make bench-large`
DISK = "/var/tmp"  # a real disk, where /tmp may be memory; each run makes a folder of its own there


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "name", choices=("all", "large", "report", "check", *NAMES), metavar="NAME", help=f"all, large, report, check, {', '.join(NAMES)}"
    )
    parser.add_argument("--quick", action="store_true", help="small counts, seconds; the figures mean nothing")
    parser.add_argument("--seed", type=int, default=1, help="of every random choice (default: 1)")
    parser.add_argument("--output", type=Path, help="folder of the result files (default: benchmarks/results; build/bench/quick)")
    given = parser.parse_args()
    output = given.output or (records.SCRATCH if given.quick else records.RESULTS)
    if given.name == "report":
        report.write(NAMES, output)
        return 0
    if given.name == "check":
        return report.check(NAMES)
    if given.name in ("all", "large"):
        code = everything(given.name, sys.argv[1:])
        if output == records.RESULTS:
            report.write(NAMES)
        return code
    conduct(given.name, output, quick=given.quick, seed=given.seed)
    return 0


def everything(which: str, arguments: list[str]) -> int:
    """Each in a process of its own, so that none pays for what another has loaded; goes on after a failure and ends with 1."""
    failed, began = [], time.monotonic()
    for name in NAMES:
        if (name in LARGE) is not (which == "large"):
            continue
        records.say(f"=== {name}")
        argv = [sys.executable, "-m", "benchmarks", *(name if word == which else word for word in arguments)]
        if bounded(argv, 2 * BUDGET[name]) != 0:
            failed.append(name)
    took = time.monotonic() - began
    records.say(f"{which}: {took / 60:.1f} minutes")
    if failed:
        records.say(f"could not be measured: {', '.join(failed)}")
    return 1 if failed else 0


def bounded(argv: list[str], seconds: float) -> int:
    """Its exit code. One that takes longer is interrupted, so that it takes its tree down itself, and killed when it does not."""
    process = subprocess.Popen(argv)
    for signal_, patience in ((signal.SIGINT, seconds), (signal.SIGKILL, INTERRUPTED_SECONDS)):
        try:
            return process.wait(patience)
        except subprocess.TimeoutExpired:
            records.say(f"{' '.join(argv[1:])} is ended: it did not end by itself within {patience:g} s")
            process.send_signal(signal_)
    return process.wait()


def conduct(name: str, output: Path, *, quick: bool, seed: int) -> None:
    prepare()
    benchmark = importlib.import_module(f"benchmarks.{name}")
    where = records.machine()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=DISK, prefix="banyan-bench-") as folder:
        options = Options(folder=Path(folder), quick=quick, seed=seed)
        rows = asyncio.run(benchmark.measure(options))
    network = getattr(benchmark, "NETWORK", records.LOOPBACK)
    made = records.result(name, options, rows, time.monotonic() - began, where=where, network=network)
    path = records.save(made, output)
    print(records.table(rows))
    for note in records.notes(rows):
        print(f"- {note}")
    records.say(f"{name}: {made.seconds:g} s, {path}")


def prepare() -> None:
    """Quiet logs, no proxies, and as many open files as this process may have: a thousand watches are a thousand sockets."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(40))
    for variable in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("BANYAN_")]:
        del os.environ[variable]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
