"""`banyan version`: this program's version, and that of the controller in reach."""

import platform
from importlib.metadata import version as installed
from typing import Any

from banyanctl import output
from banyanctl.cli import examples, settings
from cluster_controller.errors import BanyanError

DISTRIBUTION = "banyan-edge"
TIMEOUT_SECONDS = 3.0
SEPARATOR = "+banyan-"  # in what /version says, between the Kubernetes version whose API this is and the controller's own


@examples("banyan version", "banyan --at edge-1 version", "banyan version -o json")
def version() -> None:
    """Versions of this program and of the controller that it reaches."""
    found: dict[str, Any] = {"client": {"version": installed(DISTRIBUTION), "python": platform.python_version()}}
    try:
        with settings().client().copy(timeout=TIMEOUT_SECONDS) as client:
            answer = client.json("GET", "/version")
        kubernetes, _, own = str(answer.get("gitVersion", "")).partition(SEPARATOR)
        found["controller"] = {"version": own, "kubernetes": kubernetes, "server": client.endpoint.server}
    except BanyanError as error:
        found["controller"] = {"error": str(error)}
    output.emit(found, settings().output, lambda: _lines(found))


def _lines(found: dict[str, Any]) -> None:
    print(f"banyan {found['client']['version']} (Python {found['client']['python']})")
    controller = found["controller"]
    if "error" in controller:
        output.note(f"no controller: {controller['error']}")
    else:
        kubernetes = f"API of Kubernetes {controller['kubernetes'] or 'unknown'}"
        print(f"controller {controller['version'] or 'unknown'} ({kubernetes}) at {controller['server']}")
