"""The testbed by hand.

    python -m e2e.testbed build      put in place what the testbed needs: Debian packages (as root), Kubernetes, etcd, kwok, kine, images
    python -m e2e.testbed up SHAPE   run a member until Ctrl-C; SHAPE: control-plane, kwok, k3s, whole
    python -m e2e.testbed compat     build another version of Kubernetes, and run tests on it; pytest's arguments may follow
    python -m e2e.testbed sweep      remove what a run that was killed has left

`build` ends at once when all is here.
"""

import sys
import time
from collections.abc import Callable

from e2e.testbed import build, compatibility, host, images
from tools.needs import Missing


def put_in_place() -> int:
    started = time.monotonic()
    trouble = None
    try:
        host.install(host.lacking())
    except Missing as missing:  # what needs no package is built all the same
        trouble = missing
    built = build.build()
    if trouble:
        raise trouble
    images.ensure()
    done = f"built {built} programs" if built else "all is here"
    print(f"testbed: {done} in {build.folder()} ({time.monotonic() - started:.1f} s)")
    return 0


def up(shape: str) -> int:
    from e2e.testbed.member import Shape, Testbed

    shapes: dict[str, Callable[[], Shape]] = {
        "control-plane": Shape.control_plane,
        "kwok": Shape.kwok,
        "k3s": Shape.k3s,
        "whole": Shape.whole,
    }
    if shape not in shapes:
        print(f"testbed: no shape {shape!r}; there are {', '.join(shapes)}", file=sys.stderr)
        return 2
    with Testbed() as testbed:
        member = testbed.start(shape, shapes[shape]())
        print(f"ready after {member.started_s:.1f} s; KUBECONFIG={member.kubeconfig}; Ctrl-C ends it", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return 0


def sweep() -> int:
    from e2e.testbed.registry import sweep

    print(f"testbed: removed {sweep()} members that their owners left behind")
    return 0


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["build"]:
                return put_in_place()
            case ["compat", *tests]:
                compatibility.build_all()
                return compatibility.try_all(tests)
            case ["up", shape]:
                return up(shape)
            case ["sweep"]:
                return sweep()
    except Missing as missing:
        print(f"testbed: {missing}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
