"""`make lint|unit|e2e|test|test-…`: every check, in one order, with one line each and all output of those that fail.

    python -m tools.check lint|unit|e2e|faults|kubernetes|benchmarks|installation|all

`all` is lint, unit and e2e: what takes ten minutes and needs no Kubernetes cluster. It goes on after a failure, so that one run names
everything that is wrong, and ends with the test runner's own summary.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools import coverage_gate, figures, needs

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
CORES = os.cpu_count() or 2
# The tests of one file stay together, so that what a module's fixture started is started once.
TOGETHER = ("--dist", "loadfile")
# Many unit tests wait for real programs that they started, so there are two workers per core.
WORKERS = ("-n", str(max(4, 2 * CORES)), *TOGETHER)
# An end-to-end test starts a handful of controllers, each of which takes half a second of a core, and then waits for them mostly.
WORKERS_E2E = ("-n", str(max(2, CORES + CORES // 2)), *TOGETHER)
# Whole Kubernetes clusters take the machine.
WORKERS_KUBERNETES = ("-n", str(max(2, CORES)), *TOGETHER)
INSTALLATION = "tests/installation"  # builds and installs the wheel: minutes on a slow link, so only CI and those who ask
BENCHMARKS = "tests/benchmarks/test_quick.py"  # each benchmark with small counts: two minutes, for CI and those who touch them
ON_KUBERNETES = tuple(  # what takes longest first, so that no worker is left alone with it at the end
    f"e2e/test_{name}.py"
    for name in (
        *("install_kubernetes", "member_kubectl", "member_faults", "kubernetes_shim", "pods", "demo_kubernetes", "install_tree"),
        *("kubernetes_contract", "testbed", "apply", "apply_faults", "benchmarks", "charts", "k3s", "member_api", "member_metrics"),
        *("member_oidc", "member_owner", "member_shim", "member_outages"),
    )
)
# Whole trees that are cut, killed, moved and healed: minutes of waiting for what shall not happen.
FAULTS = (
    "e2e/faults",
    *(f"e2e/test_{name}.py" for name in ("failover", "replace", "rollout", "rotation", "mixed_versions", "drill", "backup")),
)
# The same of Kubernetes members: `make test-kubernetes` plays them too, where there is a testbed anyway.
FAULTS_OF_MEMBERS = ("e2e/test_member_outages.py", "e2e/test_member_shim.py")
LAST_FAILED = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"
MOST_TRIED_AGAIN = 6
AGAIN = "BANYAN_TRIED_AGAIN"  # told to the second run: there a test marked `exact` fails at once (e2e/conftest.py)
PASSED_ALONE = ROOT / "build" / "passed-alone"  # names that a run of CI says at its very end
STEP_SECONDS = 600  # no check may hang a CI run

Step = tuple[str, list[str]]


def tool(name: str) -> str:
    """The path of a tool of this environment, whatever PATH says."""
    return str(BIN / name)


LINT: list[Step] = [
    ("types (mypy --strict)", [tool("mypy")]),
    ("style (ruff check)", [tool("ruff"), "check", "--quiet", "."]),
    ("format (ruff format)", [tool("ruff"), "format", "--quiet", "--check", "."]),
    ("arrows (import-linter)", [tool("lint-imports"), "--no-cache"]),
    ("proto lint (buf)", [sys.executable, "-m", "tools.proto", "lint"]),
    ("proto breaking changes (buf)", [sys.executable, "-m", "tools.proto", "breaking"]),
    ("proto generated code", [sys.executable, "-m", "tools.proto", "check"]),
    ("performance page and charts", [sys.executable, "-m", "benchmarks", "check"]),
]


def run_quietly(step: Step) -> bool:
    """Run one check; say its name and how long it took, and what it said when it failed."""
    name, argv = step
    started = time.monotonic()
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=STEP_SECONDS, check=False)
    print(f"{'ok    ' if done.returncode == 0 else 'FAILED'} {name}  {time.monotonic() - started:.1f} s", flush=True)
    if done.returncode != 0:
        print((done.stdout + done.stderr).rstrip(), flush=True)
    return done.returncode == 0


def lint() -> bool:
    """Two at a time: mypy alone takes as long as all others together."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return all(list(pool.map(run_quietly, LINT)))


def pytest(*arguments: str, environment: dict[str, str] | None = None) -> bool:
    """Run the test runner in the foreground: its own summary is the last thing that it prints."""
    argv = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(argv, cwd=ROOT, env=os.environ | (environment or {}), check=False).returncode == 0


def twice(*what: str, workers: Sequence[str] = (), arguments: Sequence[str] = ()) -> bool:
    """End-to-end tests, several at once. A few that fail are named and tried once more, one at a time: on a machine that does much else, a
    wait that is bounded for the sake of CI may end too soon. What fails again has failed, and so have many that fail together, and
    whatever is marked `exact`. What passed only then is named once more as the last thing that is said.

    What is under test runs in processes of its own. A connection that a test's own event loop left half open is found whenever the garbage
    collector looks, and would be blamed on whichever test runs then: that is shown, and fails nothing."""
    arguments = ("-W", "default::ResourceWarning", *arguments)
    if pytest(*what, *workers, "--cache-clear", *arguments):
        return True
    failed = sorted(json.loads(LAST_FAILED.read_bytes())) if LAST_FAILED.exists() else []
    if not 0 < len(failed) <= MOST_TRIED_AGAIN:
        return False
    print(f"failed beside others, tried alone: {', '.join(failed)}", file=sys.stderr, flush=True)
    if not pytest(*what, "--last-failed", "--last-failed-no-failures=none", *arguments, environment={AGAIN: "1"}):
        return False
    PASSED_ALONE.parent.mkdir(exist_ok=True)
    with PASSED_ALONE.open("a", encoding="utf-8") as names:
        names.writelines(f"{name}\n" for name in failed)
    return True


def say_what_passed_alone() -> None:
    """CI collects the names of all its steps and says them itself."""
    if PASSED_ALONE.exists():
        names = PASSED_ALONE.read_text(encoding="utf-8").splitlines()
        print(f"failed beside others and passed only when tried alone, {len(names)}:", *names, sep="\n  ", file=sys.stderr, flush=True)
        if os.environ.get("CI") != "true":
            PASSED_ALONE.unlink()


def make_tools() -> None:
    """What tests call is made before them, with its own line; where that cannot be, each test says so."""
    if needs.installed_kubectl():
        return
    print("no kubectl 1.30+ is installed: one is built from its Go module, once (minutes)", file=sys.stderr, flush=True)
    try:
        needs.kubectl()
    except needs.Missing as missing:
        print(missing, file=sys.stderr, flush=True)


def unit(arguments: Sequence[str] = ()) -> bool:
    """Unit and property tests under branch coverage of the pure modules, then the gate on that coverage. None is tried again: what a
    property test found once is so."""
    make_tools()
    settings = coverage_gate.write_settings(ROOT)
    covered = ("--cov", f"--cov-config={settings}", "--cov-report=")
    passed = pytest("tests", f"--ignore={INSTALLATION}", f"--ignore={BENCHMARKS}", *WORKERS, "--cache-clear", *covered, *arguments)
    return coverage_gate.judge(ROOT) and passed


def e2e(arguments: Sequence[str] = ()) -> bool:
    """Real processes, TLS and kubectl; what needs a Kubernetes cluster is `kubernetes`, what breaks a whole tree is `faults`."""
    make_tools()
    return twice("e2e", *(f"--ignore={path}" for path in (*ON_KUBERNETES, *FAULTS)), workers=WORKERS_E2E, arguments=arguments)


def faults(arguments: Sequence[str] = ()) -> bool:
    """What is promised of a tree when it breaks, and of its life: on real processes. A whole run with --long, which takes an hour or two,
    leaves the figures that docs/resilience.md shows."""
    make_tools()
    figures.LEFT.parent.mkdir(exist_ok=True)
    figures.LEFT.unlink(missing_ok=True)
    played = (*FAULTS, *FAULTS_OF_MEMBERS) if "--long" in arguments else FAULTS
    passed = twice(*played, workers=WORKERS_E2E, arguments=(*arguments, f"--figures={figures.LEFT}"))
    if passed and "--long" in arguments:
        figures.record()
    return passed


def kubernetes(arguments: Sequence[str] = ()) -> bool:
    """On real Kubernetes clusters of the testbed, started in seconds once `make testbed` has built them."""
    return twice(*ON_KUBERNETES, workers=WORKERS_KUBERNETES, arguments=arguments)


def benchmarks(arguments: Sequence[str] = ()) -> bool:
    make_tools()
    return twice(BENCHMARKS, workers=("-n", str(CORES)), arguments=arguments)


def installation(arguments: Sequence[str] = ()) -> bool:
    return pytest(INSTALLATION, *arguments)


def everything(arguments: Sequence[str] = ()) -> bool:
    steps: list[Callable[[], bool]] = [lint, unit, e2e]
    started = time.monotonic()
    results = [step() for step in steps]
    names = [step.__name__ for step, good in zip(steps, results, strict=True) if not good]
    print(f"make test: {time.monotonic() - started:.0f} s; " + (f"failed: {', '.join(names)}" if names else "all passed"), file=sys.stderr)
    return not names


def main() -> int:
    commands = {
        "lint": lambda _: lint(),
        "unit": unit,
        "e2e": e2e,
        "faults": faults,
        "kubernetes": kubernetes,
        "benchmarks": benchmarks,
        "installation": installation,
        "all": everything,
    }
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        print(__doc__, file=sys.stderr)
        return 2
    passed = commands[sys.argv[1]](sys.argv[2:])
    say_what_passed_alone()
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
