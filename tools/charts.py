"""Make what the charts and `banyan join --print-manifest` take from elsewhere, so that each fact is written once.

    python -m tools.charts write     helm/banyan-edge/files/rights from cluster_shim/kubernetes/rights.py, then banyanctl/edge-*.yaml
                                     from the chart
    python -m tools.charts check     fail when they are not what their sources say now

What the chart renders is kept beside `banyanctl.manifest`, with a mark wherever a site differs: so an installed wheel writes the same
manifest as the chart without helm.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from banyanctl import manifest
from cluster_shim.kubernetes import rights
from tools import generated

EDGE = generated.ROOT / "helm" / "banyan-edge"
RIGHTS = EDGE / "files" / "rights"
HELM_SECONDS = 60


def helm(*arguments: str, stdin: str = "") -> str:
    """What helm printed; AssertionError with its own words when it fails."""
    argv = [str(Path(sys.executable).with_name("helm")), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, input=stdin, timeout=HELM_SECONDS, check=False)
    assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def rights_files() -> dict[Path, str]:
    grants = {grant.name: grant for profile in rights.PROFILES for grant in rights.grants(profile)}
    files = {RIGHTS / f"{name}.yaml": _rules(grant) for name, grant in grants.items()}
    label = "".join(f"{key}: {json.dumps(value)}\n" for key, value in rights.EXTRA.items())
    return files | {RIGHTS / "extra-label.yaml": label}


def _rules(grant: rights.Grant) -> str:
    lines = [f"# {grant.about}"]
    for rule in grant.rules:
        lines.append(f"# {rule.reason}")
        lines += [
            f"{'- ' if not number else '  '}{key}: {json.dumps(value)}" for number, (key, value) in enumerate(rule.as_policy().items())
        ]
    return "\n".join(lines) + "\n"


def render(values: dict[str, Any], namespace: str, release: str = manifest.RELEASE) -> str:
    return helm("template", release, str(EDGE), "--namespace", namespace, "--values", "-", stdin=json.dumps(values))


def manifest_files() -> dict[Path, str]:
    folder = Path(manifest.__file__).parent
    return {folder / manifest.file_name(profile): manifest_text(profile) for profile in rights.PROFILES}


def manifest_text(profile: rights.Profile) -> str:
    """The chart as it renders with marks for values, without what only Helm has a use for."""
    rendered = render(manifest.marked_values(profile), manifest.NAMESPACE)
    kept = [
        line
        for line in rendered.splitlines()
        if not re.match(r"\s*helm\.sh/(chart|resource-policy): ", line) and not line.startswith("# Source: ")
    ]
    text = "\n".join(kept).replace('app.kubernetes.io/managed-by: "Helm"', 'app.kubernetes.io/managed-by: "kubectl"')
    documents = [part.strip() for part in re.split(r"^---\n", text + "\n", flags=re.MULTILINE)]
    return "\n---\n".join(re.sub(r"\n  annotations:(?=\n\S)", "", part) for part in documents if part) + "\n"


def files() -> dict[Path, str]:
    """In the order in which they are made: the chart reads the first ones."""
    return rights_files() | manifest_files()


def write() -> int:
    generated.write(rights_files())
    return generated.write(manifest_files())


if __name__ == "__main__":
    sys.exit(generated.main(__doc__, {"write": write, "check": lambda: generated.check(files())}))
