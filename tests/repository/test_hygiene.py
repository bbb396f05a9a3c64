"""What no reviewer should have to look for: long modules, notes to oneself, loose versions, dependencies without a reason."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PRODUCT = ("banyanctl", "benchmarks", "cluster_controller", "cluster_shim", "edge_ai", "examples", "openapi", "tools")
LONGEST_MODULE = 500  # lines; someone who opens one has to see within a minute what it is for
LONGEST_TEST = 550
NAMES_NOBODY_SHARES = re.compile(r"(?<![\w$~.])/(?:home|Users)/[a-z]|\b(?:TODO|FIXME|XXX)\b")


def tracked(*patterns: str) -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def sources() -> list[Path]:
    return [path for path in tracked("*.py") if "_pb2" not in path.name]


def test_modules_are_short() -> None:
    limits = {path: LONGEST_MODULE if path.relative_to(ROOT).parts[0] in PRODUCT else LONGEST_TEST for path in sources()}
    assert len(limits) > 300
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in limits}
    assert {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > limits[path]} == {}


def test_every_module_says_why_it_exists() -> None:
    silent = [path for path in sources() if (text := path.read_text(encoding="utf-8")).strip() and not text.startswith(('"""', "#!"))]
    assert silent == []


def test_there_are_no_notes_to_oneself_and_no_folders_of_one_machine() -> None:
    own = Path(__file__)
    texts = [path for path in tracked("*.py", "*.md", "*.toml", "*.proto", "*.go", "Makefile", ".ci/*", "*.sh") if path != own]
    found = {str(path.relative_to(ROOT)): NAMES_NOBODY_SHARES.findall(path.read_text(encoding="utf-8")) for path in texts}
    assert {path: words for path, words in found.items() if words} == {}


@pytest.mark.parametrize("name", ["installer", "edge", "demo", "dev"])
def test_what_is_installed_is_locked_with_hashes_and_comes_from_whatever_index_is_configured(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
    pins = re.findall(r"^([a-z0-9][\w.-]*)(\[[\w,-]+\])?==[^\s;]+", text, re.MULTILINE | re.IGNORECASE)
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE | re.IGNORECASE)[1:]
    assert len(pins) == len(blocks) > 0
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert not re.search(r"https?://|--index-url|--find-links", text)
    assert "--require-hashes" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_dependency_has_its_reason_beside_it() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    assert len(project["dependencies"]) > 10
    lines = text.splitlines()
    named = re.compile(r'^\s*"[a-z]', re.IGNORECASE)
    start = lines.index("dependencies = [")
    listed = [line for line in lines[start + 1 : lines.index("]", start)] if named.match(line)]
    assert len(listed) == len(project["dependencies"])
    start = lines.index("dev = [")
    listed += [line for line in lines[start + 1 : lines.index("]", start)] if named.match(line)]
    assert [line for line in listed if "#" not in line] == []


def test_what_others_made_has_its_licence_and_its_source_beside_it() -> None:
    """Models and pictures: whatever is no text of ours."""
    foreign = [path for path in tracked("examples/*") if path.suffix in {".onnx", ".png", ".jpg", ".npz", ".csv", ".wav"}]
    assert len(foreign) >= 3
    for path in foreign:
        papers = "\n".join(paper.read_text(encoding="utf-8") for paper in [*path.parent.glob("*.md"), *path.parent.glob("LICENSE*")])
        assert re.search(r"MIT License|public domain|Apache License|Expat", papers, re.IGNORECASE), path
        assert re.search(r"PyPI|scikit-image|NASA|Debian", papers), path
