"""The audit log: whole lines, 0600, bounded by rotation, no secrets, and no one let in while it cannot be written."""

import resource
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from cluster_controller.errors import StoreFull
from openapi.audit import AuditLog, Line, printable, safe_query, timestamp


def line(number: int = 0, path: str = "/api/v1/pods") -> Line:
    return Line(
        time=timestamp(datetime(2026, 11, 21, 12, 0, 0, 5000, tzinfo=UTC)), id=f"{number:08d}", end="entry", stage="ended", user="ann",
        groups=["banyan:admin"], entry="e", cluster="edge-1", verb="GET", path=path, code=200,
    )  # fmt: skip


def read(path: Path) -> list[dict[str, object]]:
    return [msgspec.json.decode(each) for each in path.read_bytes().splitlines() if each]


def test_lines_are_json_and_private(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(b"")
    path.chmod(0o644)  # somebody's mistake
    log = AuditLog(path)
    log.require()
    log.write(line(1))
    log.write(line(2, "/a b\n"))
    log.close()
    log.write(line(3))  # opens it again
    log.close()
    first, second, third = read(path)
    assert first["time"] == "2026-11-21T12:00:00.005Z"
    assert (first["user"], first["verb"], first["path"], first["code"]) == ("ann", "GET", "/api/v1/pods", 200)
    assert (second["path"], third["id"]) == ("/a b\n", "00000003")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_log_is_bounded_and_loses_the_oldest_only(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path, max_bytes=2000, kept=2)
    for number in range(100):
        log.write(line(number))
    log.close()
    files = sorted(each.name for each in tmp_path.iterdir())
    assert files == ["audit.log", "audit.log.1", "audit.log.2"]
    assert all(each.stat().st_size <= 2000 and stat.S_IMODE(each.stat().st_mode) == 0o600 for each in tmp_path.iterdir())
    ids = [int(str(each["id"])) for name in reversed(files) for each in read(tmp_path / name)]
    assert ids == list(range(ids[0], 100))
    again = AuditLog(path, max_bytes=2000, kept=2)
    again.write(line(100))
    again.close()
    assert [int(str(each["id"])) for each in read(path)][-1] == 100


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (tmp_path / "audit.log").symlink_to(victim)
    log = AuditLog(tmp_path / "audit.log")
    with pytest.raises(StoreFull, match=r"audit\.log cannot be written"):
        log.require()
    log.write(line())
    assert victim.read_bytes() == b"untouched"


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """As on a full disk: no file may grow beyond ``size``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


class Quiet:
    def error(self, event: str, **fields: object) -> None:
        """pytest keeps what is printed in a file, and files do not grow now."""


def test_nobody_is_let_in_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openapi.audit.log", Quiet())
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    log.write(line(1))
    size = path.stat().st_size
    with no_room(size + 10):
        log.require()  # nothing has failed yet
        log.write(line(2))
        assert path.stat().st_size == size  # no half line
        with no_room(size), pytest.raises(StoreFull, match="what cannot be recorded is not let in"):
            log.require()
    log.require()
    log.write(line(3))
    log.close()
    assert [each["id"] for each in read(path)] == ["00000001", "00000003"]
    assert path.stat().st_size > size


def test_only_what_says_how_is_written_of_a_query() -> None:
    query = b"command=mysql&command=-psecret&container=db&tty=true&stdin=1&token=abc&fieldSelector=a%3Dsecret&watch=%0Atrue"
    assert safe_query(query) == {"container": "db", "tty": "true", "stdin": "1", "watch": "?true"}
    assert printable("a\x1b[31mé\n" + "x" * 10, 8) == "a?[31m??"
