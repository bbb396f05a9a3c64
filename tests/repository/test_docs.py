"""Documents tell the truth: their commands run, their links lead somewhere, and the pages made from the code are current."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster_controller.resources import kinds, shape, validate
from cluster_shim.process import client as supervisor
from tools import generated, needs, reference, transcript
from tools.transcript import Block, Page

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
COMMAND_SECONDS = 60
DONE = "\x1edone "


class Shell:
    """One bash for a whole page, with a HOME of its own; `run` gives what a command printed and its exit code."""

    def __init__(self, home: Path) -> None:
        self.home = home
        environment = {
            "HOME": str(home),
            "PATH": self.path(),
            "BANYAN_DATA": str(home / "root"),
            "LANG": "C.UTF-8",
            "ROOT": str(ROOT),
        }
        self._process = subprocess.Popen(
            ["bash", "--norc"], cwd=home, env=environment, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    @staticmethod
    def path() -> str:
        return f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def run(self, command: str) -> tuple[str, int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n__code=$?\necho\necho '{DONE}'$__code\n")
        self._process.stdin.flush()
        printed: list[str] = []

        def too_long(*_: object) -> None:
            raise TimeoutError(f"this did not end within {COMMAND_SECONDS} s: {command}\nUntil then it said: {''.join(printed)}")

        previous = signal.signal(signal.SIGALRM, too_long)
        signal.alarm(COMMAND_SECONDS)
        try:
            for line in self._process.stdout:
                if line.startswith(DONE):
                    return "".join(printed).strip(), int(line.removeprefix(DONE))
                printed.append(line)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        return "".join(printed), -1

    def close(self) -> None:
        """End the shell and all that it left in the background."""
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.communicate(timeout=COMMAND_SECONDS)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    found = Shell(tmp_path)
    yield found
    found.close()
    for folder in tmp_path.rglob("process"):
        supervisor.end(folder, 0)


def start_root(shell: Shell) -> None:
    """`setup: root`: a controller that `banyan` finds without being told where."""
    for command in (
        "banyan init root --api-listen 127.0.0.1:0 --tunnel-listen 127.0.0.1:0 > /dev/null",
        "banyan run > run.log 2>&1 &",
        "for i in $(seq 300); do grep -q 'serves https' run.log && break; sleep 0.1; done; grep -q 'serves https' run.log",
    ):
        printed, code = shell.run(command)
        assert code == 0, printed


def in_checkout(shell: Shell) -> None:
    """`setup: checkout`: the folder where the reader is has the examples, and nothing runs yet."""
    (shell.home / "examples").symlink_to(ROOT / "examples")
    assert shell.run("unset BANYAN_DATA") == ("", 0)


def start_root_in_checkout(shell: Shell) -> None:
    """`setup: root in a checkout`: both."""
    (shell.home / "examples").symlink_to(ROOT / "examples")
    start_root(shell)


SETUPS = {"": lambda _: None, "root": start_root, "checkout": in_checkout, "root in a checkout": start_root_in_checkout}


def left_out(block: Block, page: Path, shell: Shell) -> bool:
    """Whether a block's tool is missing, which the run's summary says; in CI that is a failure."""
    if any(needs.lacks(name, f"{page.relative_to(ROOT)}, line {block.line}") for name in block.needs):
        return True
    return bool(block.needs) and shell.run(f"export PATH={shlex.quote(shell.path())}") != ("", 0)


def test_pages_are_found() -> None:
    assert ROOT / "README.md" in PAGES
    assert len(PAGES) > 5


@pytest.mark.parametrize("path", [page for page in PAGES if "```console" in page.read_text(encoding="utf-8")], ids=lambda path: path.stem)
def test_every_command_that_a_page_shows_does_what_it_shows(path: Path, shell: Shell) -> None:
    page: Page = transcript.read(path)
    SETUPS[page.setup](shell)
    for block in page.blocks:
        if block.skipped or left_out(block, path, shell):
            continue
        if block.file:
            (shell.home / block.file).write_text(block.text, encoding="utf-8")
        for command in block.commands:
            printed, code = shell.run(command.text)
            where = f"{path.relative_to(ROOT)}:{command.line}: $ {command.text}"
            assert code == 0, f"{where}\nexits with {code}:\n{printed}"
            assert transcript.agrees(command.shown, printed), f"{where}\nshows:\n{chr(10).join(command.shown)}\nprints:\n{printed}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), f"{path.relative_to(ROOT)} links to {target}, which does not exist"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{path.relative_to(ROOT)} links to {target}, and that page has no such heading"


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+\s+(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_pages_made_from_the_code_are_current() -> None:
    assert generated.check(reference.pages()) == 0, "run: make docs"


def test_every_metric_is_listed() -> None:
    source = (ROOT / "cluster_controller" / "metrics.py").read_text(encoding="utf-8")
    made = re.findall(r'(Counter|Gauge)MetricFamily\(\s*"(banyan_\w+)"', source)
    names = {name + "_total" if kind == "Counter" else name for kind, name in made}
    rows = re.findall(r"^\| (`banyan_.*?) \|", (ROOT / "docs" / "how-to" / "operate.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 10
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == names


def test_the_examples_have_every_field_of_an_application() -> None:
    pages = [transcript.read(ROOT / "docs" / "how-to" / name) for name in ("deploy.md", "kubernetes-objects.md")]
    blocks = [block for page in pages for block in page.blocks if block.file]
    documents = [each for block in blocks for each in yaml.safe_load_all(block.text)]
    shown: set[str] = set()
    for document in documents:
        if document["kind"] == "Application":
            document["metadata"].setdefault("namespace", "default")
            validate.check("Application", document)
            shown |= set(_paths(document["spec"], "spec"))
    unserved = {path.replace("[]", "") for kind, path, values, _ in kinds.UNSERVED if kind == "Application" and values is None}
    known = {path for path in _fields(shape.shape_of(kinds.ApplicationSpec), "spec") if not any(path.startswith(each) for each in unserved)}
    assert len(known) > 60
    assert known <= shown, f"docs/how-to has no example of {sorted(known - shown)}"


def _paths(value: object, path: str) -> Iterator[str]:
    yield path.replace(".liveness", ".readiness")  # both are a Probe: a field that one of them shows is shown
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, path)


def _fields(found: shape.Shape, path: str) -> Iterator[str]:
    yield path.replace(".liveness", ".readiness")
    for key, inner in (found.fields or {}).items():
        yield from _fields(inner, f"{path}.{key}")
    if found.items is not None:
        yield from _fields(found.items, path)


# --- the transcripts themselves ---


def test_a_transcript_is_commands_and_what_they_print() -> None:
    text = (
        "<!-- setup: root -->\n<!-- needs: kubectl -->\n\n```console\n$ a \\\n  b\none\ntwo\n$ c\n```\n"
        "<!-- not run: no such host -->\n```console\n$ d\n```\n```sh\nx\n```\n<!-- file: a.yaml -->\n```yaml\na: 1\n```\n"
    )
    page = transcript.read(Path("page.md"), text)
    assert page.setup == "root"
    assert [[command.text for command in block.commands] for block in page.blocks] == [["a b", "c"], ["d"], []]
    assert (page.blocks[2].file, page.blocks[2].text) == ("a.yaml", "a: 1\n")
    assert page.blocks[0].commands[0].shown == ("one", "two")
    assert (page.blocks[0].needs, page.blocks[0].skipped, page.blocks[1].skipped) == (("kubectl",), "", "no such host")


@pytest.mark.parametrize("text", ["```console\n$ a\n", "```console\nno command\n```\n"])
def test_a_broken_transcript_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md:\d"):
        transcript.read(Path("page.md"), text)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ((), "anything", True),
        (("root  ● Ready", "└── edge  heard … ago"), "root     ● Ready\n└── edge  heard 3s ago", True),
        (("a", "…", "z"), "a\nb\nc\nz", True),
        (("a",), "b", False),
        (("a",), "a b", False),
        (("a.c",), "abc", False),
    ],
)
def test_an_ellipsis_stands_for_anything_and_nothing_else_does(shown: tuple[str, ...], printed: str, same: bool) -> None:
    assert transcript.agrees(shown, printed) is same


def test_a_command_that_fails_or_lies_is_caught(shell: Shell) -> None:
    assert shell.run("false")[1] == 1
    assert shell.run("echo one; cd /tmp; X=5") == ("one", 0)
    assert shell.run("echo $PWD $X") == ("/tmp 5", 0)


def test_what_a_command_says_while_it_waits_is_no_difference() -> None:
    """On a slow machine it says more."""
    assert transcript.agrees(("edge-1 has left",), "… telling region-a\nedge-1 has left\n")
    assert not transcript.agrees(("edge-1 has left",), "region-a was told\nedge-1 has left\n")
