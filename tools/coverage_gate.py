"""Branch coverage of the pure modules, measured in CI: at least 95 % together, and none forgotten.

The list of pure modules is the one in `.importlinter`. Only they are traced, so the other tests run at full speed.
"""

import json
from pathlib import Path

import coverage

from tools.contracts import pure_modules

WANTED_PERCENT = 95.0
WORST = 10  # files named when the gate fails


def write_settings(root: Path) -> Path:
    """A coverage configuration for the pure modules; returns its path."""
    build = root / "build"
    build.mkdir(exist_ok=True)
    # A module or a package: either of the two patterns matches something.
    patterns = [pattern for module in pure_modules() for pattern in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/*")]
    lines = ["[run]", "branch = True", "relative_files = True", f"data_file = {build / 'coverage'}", "include ="]
    lines += [f"    {root / pattern}" for pattern in patterns]
    lines += ["[report]", "exclude_also =", "    if TYPE_CHECKING:", "    assert_never\\(", "    \\.\\.\\.$"]
    path = build / "pure-coverage.ini"  # not coverage.*: those are the data of parallel workers, which coverage erases at start
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def judge(root: Path) -> bool:
    """Read what the tests left, print the figure, and say which files hold it down when it is too low."""
    build = root / "build"
    if not (build / "coverage").exists():
        print("no coverage was measured: the tests did not run")
        return False
    data = coverage.Coverage(config_file=str(write_settings(root)))
    data.load()
    report = build / "coverage.json"
    data.json_report(outfile=str(report))
    found = json.loads(report.read_text(encoding="utf-8"))
    files, totals = found["files"], found["totals"]
    unseen = sorted(str(path) for path in pure_files(root) - set(files) if (root / path).stat().st_size)
    percent = branch_percent(totals)
    print(
        f"branch coverage of the pure parts: {percent:.1f} % of {totals['num_branches']} branches"
        f" in {len(files)} modules (wanted: {WANTED_PERCENT:.0f} %)"
    )
    for path in unseen:
        print(f"  {path}: no test imports it")
    if percent >= WANTED_PERCENT and not unseen:
        return True
    worst = sorted(files.items(), key=lambda item: -item[1]["summary"]["missing_branches"])
    for path, entry in worst[:WORST]:
        if entry["summary"]["missing_branches"]:
            print(f"  {path}: {branch_percent(entry['summary']):.0f} %, missing {entry.get('missing_branches', [])[:8]}")
    return False


def pure_files(root: Path) -> set[str]:
    """Every file of the pure modules, relative to the root of the repository."""
    found: set[str] = set()
    for module in pure_modules():
        base = root / module.replace(".", "/")
        paths = base.rglob("*.py") if base.is_dir() else [base.with_suffix(".py")]
        found.update(str(path.relative_to(root)) for path in paths)
    return found


def branch_percent(summary: dict[str, int]) -> float:
    """Branches taken of branches there are, in percent; a file without branches is covered."""
    return 100.0 * summary["covered_branches"] / summary["num_branches"] if summary["num_branches"] else 100.0
