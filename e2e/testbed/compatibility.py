"""Other versions of Kubernetes than the one that every change is tried on: built when asked for, and put through the same tests.

`make testbed-compat`. What passes here is what the compatibility table may name: a second minor version, and k3s's own fork of Kubernetes.
Of the fork the Go module proxy does not give out everything: its main module comes as an archive alone (`build.K3S`), and three of its
modules are not to be had at all (`kms`, `cri-client`, and the settings of the controller manager); those are Kubernetes' own of the same
version. The checksum database knows none of it: the hashes are in the committed go.sum.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from e2e.testbed import build

ROOT = Path(__file__).parent.parent.parent
VERSIONS = {"1.33.13": ("kubernetes-1.33", None), "1.34.2+k3s1": ("kubernetes-k3s", build.K3S)}  # version → folder under go/, sources
TESTS = (
    "e2e/test_testbed.py",
    "e2e/test_apply.py",
    "e2e/test_apply_faults.py",
    "e2e/test_kubernetes_contract.py",
    "e2e/test_kubernetes_shim.py",
    "e2e/test_member_kubectl.py",
    "e2e/test_pods.py",
)


def build_all() -> int:
    """Build every version; how many programs that took."""
    return sum(
        build.build([build.kubernetes(name, module, version, sources) for name in build.PROGRAMS], version)
        for version, (module, sources) in VERSIONS.items()
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
