"""What a linter cannot check: the size of things, where the drivers may be imported, and what must never be committed.

Every test collects all violations before it fails, so that one run shows the whole list. Forbidden words are put
together from halves here, or this file would be the first to break its own rules.
"""

from __future__ import annotations

import ast
import re
import subprocess
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "penstock"
LOCK = ROOT / "requirements.lock"
MODULE_LINES = 500
FUNCTION_LINES = 70
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "misc"}
#: Which modules may import a driver, as patterns of their path below the package.
DRIVERS = {
    "aiokafka": ("log/kafka*.py", "log/kafka*/*.py"),
    "rocksdict": ("log/embedded*.py", "log/embedded*/*.py", "log/store.py"),
    "obstore": ("log/blobs.py",),
}


def _words(broken: str) -> str:
    """Alternatives of a pattern, from words that are broken by a tilde lest this file contain them."""
    return "|".join(re.escape(word) for word in broken.replace("~", "").split())


UNFINISHED = re.compile(rf"\b(?:{_words('TO~DO FIX~ME XX~X HA~CK')})\b(?P<rest>.*)")
SUPPRESSION = re.compile(
    r"#\s*(?:noqa(?:\s*:\s*[A-Z]+\d+(?:\s*,\s*[A-Z]+\d+)*)?"
    r"|(?:type|pyright|basedpyright)\s*:\s*ignore(?:\[[^\]]*\])?)(?P<rest>.*)"
)
MACHINE_PATH = re.compile(r"(?<![\w.~$}-])/(?:work|root|home|Users)/")
REGISTRY = re.compile(
    _words("pypi~.org files.python~hosted registry.npm~js repo1~.maven repo~.maven crates~.io")
    + "|"
    + _words("proxy.go~lang deb.deb~ian /opt/whe~els")
)
TICKET = re.compile(r"\bissue\s+#?\d+\b", re.IGNORECASE)


@cache
def _files() -> tuple[Path, ...]:
    """Files that are, or would be, under version control; all but the ignored ones in an exported tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0:
        found = (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    else:
        found = (path for path in ROOT.rglob("*") if not any(part.startswith(".v") for part in path.parts))
    return tuple(sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts))


@cache
def _texts() -> tuple[tuple[str, str], ...]:
    """Relative path and content of every text file."""
    texts: list[tuple[str, str]] = []
    for path in _files():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            texts.append((_name(path), data.decode("utf-8", errors="replace")))
    return tuple(texts)


@cache
def _python() -> tuple[tuple[Path, ast.Module], ...]:
    return tuple((path, ast.parse(path.read_bytes())) for path in _files() if path.suffix == ".py")


def _package() -> list[tuple[Path, ast.Module]]:
    return [(path, tree) for path, tree in _python() if path.is_relative_to(PACKAGE)]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def _found(pattern: re.Pattern[str], *, but: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in _texts()
        if name not in but
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_modules_are_short() -> None:
    lengths = [(len(path.read_bytes().splitlines()), _name(path)) for path, _ in _python()]
    assert [entry for entry in lengths if entry[0] > MODULE_LINES] == []


def test_functions_are_short() -> None:
    long: list[str] = []
    for path, tree in _python():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                lines = (node.end_lineno or node.lineno) - first.lineno + 1
                if lines > FUNCTION_LINES:
                    long.append(f"{_name(path)}:{node.lineno}: {node.name} has {lines} lines")
    assert long == []


def test_modules_are_named_after_what_they_do() -> None:
    assert [_name(path) for path, _ in _python() if {path.stem, path.parent.name} & VAGUE_NAMES] == []


def test_every_module_of_the_package_says_what_it_is() -> None:
    assert [_name(path) for path, tree in _package() if not ast.get_docstring(tree)] == []


def test_only_the_log_s_own_modules_import_drivers() -> None:
    stray: list[str] = []
    for path, tree in _package():
        inside = path.relative_to(PACKAGE)
        for line, module in _imports(tree):
            allowed = DRIVERS.get(module.split(".")[0])
            if allowed is not None and not any(inside.match(pattern) for pattern in allowed):
                stray.append(f"{_name(path)}:{line}: {module}")
    assert stray == []


def test_pure_layers_ask_neither_clock_nor_console_nor_disk() -> None:
    impure: list[str] = []
    for path, tree in _package():
        if path.relative_to(PACKAGE).parts[0] not in {"core", "schemas"}:
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            clock = isinstance(called, ast.Attribute) and called.attr in {"now", "utcnow", "today"}
            outside = isinstance(called, ast.Name) and called.id in {"open", "print", "input"}
            if clock or outside:
                impure.append(f"{_name(path)}:{node.lineno}: {ast.unparse(called)}()")
    assert impure == []


def test_no_path_of_somebody_s_machine() -> None:
    assert _found(MACHINE_PATH) == []


def test_no_registry_is_named() -> None:
    assert _found(REGISTRY) == []


def test_no_ticket_numbers() -> None:
    assert _found(TICKET, but=("LICENSE",)) == []


def test_what_is_left_to_do_says_why() -> None:
    """A marker is followed by a colon and at least three words: what, and why not now."""
    bare: list[str] = []
    for name, text in _texts():
        for number, line in enumerate(text.splitlines(), 1):
            marker = UNFINISHED.search(line)
            if marker and not re.match(r"(?:\([^)]*\))?:\s*\S+\s+\S+\s+\S+", marker["rest"]):
                bare.append(f"{name}:{number}: {line.strip()[:100]}")
    assert bare == []


def test_every_suppression_says_why() -> None:
    """After the rule's name come words: `[ruleName]  # the library's hint is wrong`."""
    bare: list[str] = []
    for path, _ in _python():
        for line, comment in _comments(path):
            for suppression in SUPPRESSION.finditer(comment):
                if len(re.findall(r"[A-Za-z]{2,}", suppression["rest"])) < 2:
                    bare.append(f"{_name(path)}:{line}: {comment}")
    assert bare == []


@pytest.mark.parametrize("comment", ["# noqa: BLE001", "x  # type: ignore[attr]", "# pyright: ignore"])
def test_a_bare_suppression_would_be_found(comment: str) -> None:
    bare = SUPPRESSION.search(comment)
    assert bare is not None
    assert bare["rest"].strip() == ""
    explained = SUPPRESSION.search(f"{comment}  # the reason is this")
    assert explained is not None
    assert explained["rest"].strip() == "# the reason is this"


def test_the_changelog_knows_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[(?:Unreleased|{re.escape(version)})\]", changelog, re.MULTILINE)


@pytest.mark.parametrize("name", ["README.md", "docs/ARCHITECTURE.md", "CHANGELOG.md", "LICENSE"])
def test_the_documents_exist(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8").strip()


def test_the_lock_file_pins_and_hashes_everything() -> None:
    text = LOCK.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    loose = [line for line in lines if not re.match(r"[\w.\[\],-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line)]
    assert loose == []
    assert not re.search(r"://|--(?:extra-)?index-url|--find-links|--trusted-host|\bfile:", text)


def test_the_lock_file_has_every_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {_canonical(re.split(r"[\[<>=!~; ]", entry)[0]) for group in groups for entry in group}
    locked = {_canonical(name) for name in re.findall(r"^([\w.-]+)==", LOCK.read_text("utf-8"), re.MULTILINE)}
    assert declared - locked == set()


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
