"""Other versions of Kubernetes than the one that every change is tried on: built when asked for, and put through the same tests.

`make testbed-compat`. What passes here is what the compatibility table may name. k3s's own fork of Kubernetes is not among them: of the
modules `github.com/k3s-io/kubernetes` the Go module proxy refuses some (403), and the checksum database knows none (404), so they could
be built only by telling Go not to verify what it downloads. A k3s-style member is therefore Kubernetes' own API server on k3s's datastore,
under a version as k3s gives it.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from e2e.testbed import build

ROOT = Path(__file__).parent.parent.parent
VERSIONS = {"1.33.13": "kubernetes-1.33"}  # version → folder under go/
TESTS = (
    "e2e/test_testbed.py",
    "e2e/test_informer.py",
    "e2e/test_apply.py",
    "e2e/test_kubernetes_shim.py",
    "e2e/test_pods.py",
)


def build_all() -> int:
    """Build every version; how many programs that took."""
    return sum(
        build.build([build.kubernetes(name, module, version) for name in build.PROGRAMS], version) for version, module in VERSIONS.items()
    )


def try_all(arguments: Sequence[str]) -> int:
    """Run tests (those of Kubernetes members, unless others are named) against members of each version; 0 when all pass."""
    failed = []
    for version in VERSIONS:
        print(f"testbed: Kubernetes {version}", flush=True)
        environment = os.environ | {build.VERSION_VARIABLE: version}
        argv = [sys.executable, "-m", "pytest", *(arguments or TESTS)]
        if subprocess.run(argv, cwd=ROOT, env=environment, check=False).returncode != 0:
            failed.append(version)
    tried = ", ".join(f"{version} {'FAILED' if version in failed else 'passed'}" for version in VERSIONS)
    print(f"testbed: {tried}")
    return 1 if failed else 0
