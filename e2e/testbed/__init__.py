"""Real Kubernetes clusters on one machine, for tests, benchmarks and the demo: started in seconds, gone without a trace.

    from e2e.testbed import Shape, Testbed

    with Testbed() as testbed:
        member = testbed.start("edge-k8s", Shape.whole())      # or .control_plane(), .kwok(nodes=3), .k3s()
        member.kubectl("get", "nodes")
        member.cut_uplink()

`python -m e2e.testbed build` (or `make testbed`) puts in place what this needs. Rooms: `build` and `host` find programs, `pki` makes
certificates, `registry` owns folders and sweeps those of the dead, `keeper` is the process that holds a member together and takes it down
with its owner, `machine` speaks to it, `components` knows the command lines, `member` puts it together.
"""

from e2e.testbed.member import Member, Shape, Testbed
from e2e.testbed.registry import sweep
from tools.needs import Missing

__all__ = ["Member", "Missing", "Shape", "Testbed", "sweep"]
