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
from openapi.audit import MAX_REFUSED_USERS, MINUTE, REFUSED_A_MINUTE, AuditLog, Line, Refusals, printable, safe_query, timestamp


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
    log.write(line(1), 0.0)
    log.write(line(2, "/a b\n"), 0.0)
    log.close()
    log.write(line(3), 0.0)  # opens it again
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
        log.write(line(number), 0.0)
    log.close()
    files = sorted(each.name for each in tmp_path.iterdir())
    assert files == ["audit.log", "audit.log.1", "audit.log.2"]
    assert all(each.stat().st_size <= 2000 and stat.S_IMODE(each.stat().st_mode) == 0o600 for each in tmp_path.iterdir())
    ids = [int(str(each["id"])) for name in reversed(files) for each in read(tmp_path / name)]
    assert ids == list(range(ids[0], 100))
    again = AuditLog(path, max_bytes=2000, kept=2)
    again.write(line(100), 0.0)
    again.close()
    assert [int(str(each["id"])) for each in read(path)][-1] == 100


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (tmp_path / "audit.log").symlink_to(victim)
    log = AuditLog(tmp_path / "audit.log")
    with pytest.raises(StoreFull, match=r"audit\.log cannot be written"):
        log.require()
    log.write(line(), 0.0)
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
    log.write(line(1), 0.0)
    size = path.stat().st_size
    with no_room(size + 10):
        log.require()  # nothing has failed yet
        log.write(line(2), 0.0)
        assert path.stat().st_size == size  # no half line
        with no_room(size), pytest.raises(StoreFull, match="what cannot be recorded is not let in"):
            log.require()
    log.require()
    log.write(line(3), 0.0)
    log.close()
    assert [each["id"] for each in read(path)] == ["00000001", "00000003"]
    assert path.stat().st_size > size


def test_only_what_says_how_is_written_of_a_query() -> None:
    query = b"command=mysql&command=-psecret&container=db&tty=true&stdin=1&token=abc&fieldSelector=a%3Dsecret&watch=%0Atrue"
    assert safe_query(query) == {"container": "db", "tty": "true", "stdin": "1", "watch": "?true"}
    assert printable("a\x1b[31mé\n" + "x" * 10, 8) == "a?[31m??"


def test_what_one_user_is_refused_cannot_drive_out_what_others_did(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path, max_bytes=100_000, kept=1)
    log.write(line(1), 0.0)
    for number in range(100_000):
        log.write_refused(msgspec.structs.replace(line(number), user="vic", code=403), 1.0)
    log.write_refused(msgspec.structs.replace(line(2), user="bob", code=403), 2.0)
    log.write(line(3), MINUTE + 1.5)
    log.write_refused(msgspec.structs.replace(line(4), user="vic", code=403), MINUTE + 3.0)
    log.close()
    found = read(path)
    assert found[0]["id"] == "00000001"
    assert [each["user"] for each in found].count("vic") == REFUSED_A_MINUTE + 2
    (counted,) = [each for each in found if each["stage"] == "counted"]
    assert (counted["user"], counted["end"]) == ("vic", "entry")
    assert counted["reason"] == f"{100_000 - REFUSED_A_MINUTE} more requests were refused or failed within a minute"
    assert [each["user"] for each in found[-3:]] == ["vic", "ann", "vic"]  # the count, before what came after
    assert len(found) == REFUSED_A_MINUTE + 5


def test_what_was_counted_last_is_told_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    for number in range(REFUSED_A_MINUTE + 3):
        log.write_refused(line(number), 1.0)
    log.close()
    assert str(read(path)[-1]["reason"]).startswith("3 more requests")


def test_however_many_users_are_refused_the_table_is_bounded() -> None:
    refusals = Refusals()
    for number in range(MAX_REFUSED_USERS):
        assert refusals.admit(f"u{number}", "entry", 0.0)
    admitted = [refusals.admit(f"more-{number}", "entry", 1.0) for number in range(REFUSED_A_MINUTE + 5)]
    assert admitted.count(True) == REFUSED_A_MINUTE
    assert refusals.over(MINUTE - 1) == []
    assert refusals.over(MINUTE + 1) == [("", "entry", 5)]
    assert refusals.admit("u0", "entry", MINUTE + 1)
