"""Run seeds: ``python -m tests.simulation --seeds 200 --from 0``, or ``make simulate SEEDS=200 FROM=0``.

One line for each seed that fails, with the commands that replay it and find the fewest steps that fail, and one last line of figures;
exit code 1 when anything failed.
"""

import argparse
import functools
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.simulation import scenario
from tests.simulation.playing import FAMILIES
from tests.simulation.scenario import Outcome
from tests.simulation.shrink import shrink
from tests.simulation.steps import ROUNDS, Plan

SHOWN = 5  # violations of one seed


def main(arguments: list[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    if options.shrink:
        return _shrink(options)
    failed = hours = violations = count = 0.0
    for outcome in _outcomes(options):
        count += 1
        hours += outcome.seconds / 3600.0
        if outcome.violations:
            failed += 1
            violations += len(outcome.violations)
            _report(outcome, options)
        elif options.verbose:
            print(f"seed {outcome.seed}: {outcome.lines} lines, {outcome.digest}", flush=True)
    print(f"{count:.0f} seeds, {hours:.1f} simulated hours, {violations:.0f} violations")
    return 1 if failed else 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of twelve minutes each")
    parser.add_argument("--clusters", type=int, default=scenario.CLUSTERS, help="of each tree")
    parser.add_argument("--families", default="", help=f"further kinds of steps, with commas, or all: {', '.join(FAMILIES)}")
    parser.add_argument("--weeks", action="store_true", help="each seed is a week")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--trace", type=Path, help="write the whole history of a single seed there")
    parser.add_argument("--shrink", action="store_true", help="find the fewest steps with which the seed --from still fails")
    parser.add_argument("--verbose", action="store_true", help="a line for each seed")
    return parser


def _outcomes(options: argparse.Namespace) -> Iterator[Outcome]:
    seeds = range(options.first, options.first + options.seeds)
    if options.jobs == 1 or options.trace:
        for seed in seeds:
            yield scenario.simulate(_plan(options, seed), options.trace)
        return
    with ProcessPoolExecutor(options.jobs) as pool:
        yield from pool.map(functools.partial(_one, options), seeds)


def _one(options: argparse.Namespace, seed: int) -> Outcome:
    return scenario.simulate(_plan(options, seed))


def _plan(options: argparse.Namespace, seed: int) -> Plan:
    plan = scenario.draw_week(seed) if options.weeks else scenario.draw(seed, clusters=options.clusters, rounds=options.rounds)
    names = options.families.split(",") if options.families else []
    return scenario.draw_with(plan, tuple(FAMILIES) if names == ["all"] else tuple(names))


def _report(outcome: Outcome, options: argparse.Namespace) -> None:
    again = replay(outcome.seed, options)
    print(f"seed {outcome.seed}: {len(outcome.violations)} violations; replay: {again} TRACE=FILE; its fewest steps: {again} SHRINK=1")
    for violation in outcome.violations[:SHOWN]:
        print(f"    {violation}")
    sys.stdout.flush()


def replay(seed: int, options: argparse.Namespace) -> str:
    """The command that plays this very seed again: what is drawn from a seed also depends on how long it is and how large the tree."""
    words = ["make simulate SEEDS=1", f"FROM={seed}"]
    if options.weeks:
        words.append("WEEKS=1")
    else:
        words += [f"ROUNDS={options.rounds}"] * (options.rounds != ROUNDS)
        words += [f"CLUSTERS={options.clusters}"] * (options.clusters != scenario.CLUSTERS)
    words += [f"FAMILIES={options.families}"] * bool(options.families)
    return " ".join(words)


def _shrink(options: argparse.Namespace) -> int:
    plan = _plan(options, options.first)
    seed, began = plan.seed, time.monotonic()
    found = shrink(plan)
    if found is None:
        print(f"seed {seed} does not fail")
        return 0
    smaller, outcome = found
    print(f"seed {seed}: {len(plan.steps)} steps, {len(smaller.steps)} are enough ({time.monotonic() - began:.0f} s)")
    for step in smaller.steps:
        print(f"    {step}")
    _report(outcome, options)
    return 1


if __name__ == "__main__":
    sys.exit(main())
