"""Images that a node needs and no registry gives here: the pause container, and busybox for tests. Made once, kept in the cache."""

import fcntl
import subprocess
import tempfile
from pathlib import Path

from e2e.testbed import host
from tools import image
from tools.needs import Missing, cache

PAUSE = "banyan-testbed/pause:1"
BUSYBOX = "busybox:testbed"
PAUSE_SOURCE = Path(__file__).parent / "pause.c"


def folder() -> Path:
    return cache() / "images"


def ensure() -> list[Path]:
    """The images' tars; made again when what they are made of is newer. Raises Missing."""
    busybox = Path(host.require("busybox"))
    sources = [PAUSE_SOURCE, busybox, Path(image.__file__), Path(__file__)]
    newest = max(path.stat().st_mtime for path in sources)
    tars = [folder() / "pause.tar", folder() / "busybox.tar"]
    if all(tar.exists() and tar.stat().st_mtime >= newest for tar in tars):
        return tars
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / ".lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        image.write(pause(), tars[0])
        image.write(busybox_image(busybox), tars[1])
    return tars


def pause() -> image.Image:
    with tempfile.TemporaryDirectory() as name:
        binary = Path(name) / "pause"
        argv = [host.require("cc"), "-static", "-Os", "-s", "-o", str(binary), str(PAUSE_SOURCE)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise Missing(f"the pause program does not compile (Debian: apt-get install gcc libc6-dev): {done.stderr.strip()[-500:]}")
        return image.Image(f"docker.io/{PAUSE}", [[image.Entry("pause", binary.read_bytes())]], entrypoint=["/pause"], user="65535:65535")


def busybox_image(binary: Path) -> image.Image:
    listed = subprocess.run([binary, "--list"], capture_output=True, text=True, timeout=30, check=True).stdout.split()
    entries = [image.Entry(f"bin/{name}", link="busybox") for name in listed if name != "busybox"]
    entries += [
        image.Entry("bin/busybox", binary.read_bytes()),
        image.Entry("etc/passwd", b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n", 0o644),
        image.Entry("etc/group", b"root:x:0:\nnobody:x:65534:\n", 0o644),
        image.Entry("tmp", mode=0o1777),
    ]
    return image.Image(BUSYBOX, [entries], command=["sh"])
