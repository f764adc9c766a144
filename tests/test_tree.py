"""The tree polices itself: layers, sizes, system calls, names. Exceptions are listed here, each with its reason."""
from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "epollkit"

# What each module may import or cimport, besides the leaves and itself: only what stands before it.
LAYERS = [
    ("leaf", ["_sys", "_timers", "_slots", "_epollset", "_closings", "_idle", "_output", "_bytes", "_histogram",
              "errors", "events", "stats", "_checks", "_sockets", "_resolver", "_children"]),
    ("below the core", ["_tokens", "_calls", "_tls", "_rate"]),
    ("core", ["_core"]),
    ("scheduling", ["_schedule"]),
    ("room", ["_room"]),
    ("raw API", ["_raw"]),
    ("listening", ["_listener"]),
    ("connection", ["_buffered"]),
    ("TLS and rates", ["_connection"]),
    ("stream", ["_stream"]),
    ("connecting", ["_connector"]),
    ("pool", ["pool"]),
    ("loop", ["loop", "__init__"]),
    ("codec", ["_http1", "_http1_fields", "_http1_response", "_http1_python"]),
    ("http", ["_httpconn", "http"]),
    ("load", ["_tally", "_siege", "siege"]),
    ("demo", ["demo"]),
    ("cli", ["cli"]),
]
RANK = {module: rank for rank, (_, modules) in enumerate(LAYERS) for module in modules}
DEBUG_ONLY = {"_debug", "_kernel", "_loopstate"}    # looks into everything, and nothing but tests looks at it
DEBUG_LEAF = {"_operations": {"_sys"}}      # what every system call goes through there: knows nothing but those
CODEC_KNOWS = {"_http1", "_http1_fields", "_http1_response", "errors"}

MOST_LINES = 800
LONGEST_FUNCTION = 70


def sources(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in PACKAGE.rglob(pattern))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported(text: str) -> set[str]:
    """Modules of epollkit that a source names in import and cimport lines."""
    found = set(re.findall(r"^\s*(?:from|c?import)\s+epollkit\.(\w+)", text, re.MULTILINE))
    for names in re.findall(r"^\s*from\s+epollkit\s+c?import\s+(.+)$", text, re.MULTILINE):
        for name in re.findall(r"\w+", names):
            found.add(name if (PACKAGE / f"{name}.py").exists() or (PACKAGE / f"{name}.pxd").exists() else "__init__")
    if re.search(r"^\s*c?import\s+epollkit\s*$", text, re.MULTILINE):
        found.add("__init__")
    return found


@pytest.mark.parametrize("path", sources("*.py", "*.pyx", "*.pxd"), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down_only(path: Path):
    module = module_of(path)
    if module in DEBUG_ONLY:
        return
    if module in DEBUG_LEAF:
        assert imported(path.read_text()) - {module} <= DEBUG_LEAF[module]
        return
    assert module in RANK, f"{module} has no layer; give it one in {Path(__file__).name}"
    for other in imported(path.read_text()) - {module}:
        assert other in RANK, f"{module} imports {other}, which has no layer"
        assert RANK[other] <= RANK[module], f"{module} is below {other} and may not import it"


def test_the_package_does_not_read_its_own_front():
    """`from epollkit cimport` and `cimport epollkit` read `__init__.pxd`, what handlers outside see: every layer in it
    would become known to the lowest. Inside it is `cimport epollkit._core as _core`."""
    for path in sources("*.pyx", "*.pxd"):
        assert not re.search(r"^\s*(?:from\s+epollkit\s+cimport|cimport\s+epollkit\s*$)", path.read_text(),
                             re.MULTILINE), path.name


def test_the_codec_knows_no_socket_and_no_loop():
    for path in sources("_http1*.pyx", "_http1*.pxd"):
        assert imported(path.read_text()) <= CODEC_KNOWS


def test_only_the_leaf_names_a_system_call():
    """Whoever writes epoll_ctl( or recv( outside of _sys.h takes a path that the fake kernel can't replace."""
    call = re.compile(r"(?<![\w.])(?<!def )(epoll_(?:create1?|ctl|wait|pwait2?)|accept4?|socket|connect|bind|"
                      r"recv(?:msg)?|send(?:msg|to)?|eventfd|"
                      r"getsockopt|setsockopt|shutdown|clock_gettime)\s*\(")
    for path in sources("*.pyx", "*.pxd"):
        code = re.sub(r'""".*?"""|#[^\n]*|"[^"\n]*"', "", path.read_text(), flags=re.DOTALL)
        assert not call.search(code), f"{path.name}: {call.search(code)}"


def test_every_system_call_can_be_replaced():
    """In the debug build, by way of the table of operations. Memory, and what makes no call, is not in it."""
    header = (PACKAGE / "_sys.h").read_text()
    wrapped = set(re.findall(r"^static inline [\w *]+\bEK_REAL\((\w+)\)", header, re.MULTILINE))
    plain = set(re.findall(r"^static inline [\w *]+\bek_(\w+)\(", header, re.MULTILINE))
    assert wrapped == set(re.findall(r"^\s+X\(\w+, (\w+),", (PACKAGE / "_operations.h").read_text(), re.MULTILINE))
    assert plain == {"last_recv", "grow_pages", "free_pages", "event_tag", "event_mask", "read_address", "clock",
                     "numeric_address", "unix_address", "port", "same_end"}


def test_no_room_is_too_large():
    for path in sources("*.py", "*.pyx", "*.pxd"):
        lines = path.read_text().count("\n")
        assert lines <= MOST_LINES, f"{path.name} has {lines} lines: that is two rooms"


def function_lengths(path: Path) -> dict[str, int]:
    if path.suffix == ".py":
        return {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    lengths: dict[str, int] = {}
    name, indent, start, last = "", -1, 0, 0
    for number, line in enumerate([*path.read_text().splitlines(), "end"], 1):
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        if name and depth <= indent and not line.lstrip().startswith((")", "#")):
            lengths[f"{name}:{start}"] = last - start + 1
            name = ""
        match = re.match(r"\s*(?:cdef|cpdef|def)\s(?!class\b)[^=]*?(\w+)\(.*", line)
        if match and not name and (":" in line or line.rstrip().endswith(",")):
            name, indent, start = match.group(1), depth, number
        last = number
    return lengths


def test_no_function_is_too_long():
    for path in sources("*.py", "*.pyx", "*.pxd"):
        for name, length in function_lengths(path).items():
            assert length <= LONGEST_FUNCTION, f"{path.name}: {name} has {length} lines"


def test_compiler_directives_come_from_setup_only():
    """One in a file's header would beat the debug build's."""
    for path in sources("*.pyx", "*.pxd"):
        assert not re.search(r"^#\s*cython\s*:", path.read_text(), re.MULTILINE), path.name
        assert "@cython.boundscheck" not in path.read_text(), path.name


def test_there_are_three_kinds_of_c_function():
    """noexcept; int (or a pointer) except; returning an object. Cython's own default for the rest hides errors."""
    plain = re.compile(r"^\s*cdef\s+(?:inline\s+)?(?:int|bint|void|size_t|ssize_t|Py_ssize_t|u?int\d+_t)"
                       r"\s+\w+\(.*\)\s*:?\s*$")
    for path in sources("*.pyx", "*.pxd"):
        for line in path.read_text().splitlines():
            if plain.match(line):
                pytest.fail(f"{path.name}: {line.strip()} is neither noexcept nor except")


def test_no_return_within_an_except_clause():
    """Cython 3.3 then gives up a reference to the exception's traceback, and there is none if not even that could be
    allocated: `return` leaves through a NULL pointer. What falls out of the clause, or is raised in it, is right."""
    for path in sources("*.pyx", "*.pxd"):
        clause = None
        for number, line in enumerate(path.read_text().splitlines(), 1):
            depth = len(line) - len(line.lstrip())
            if clause is not None and line.strip() and depth <= clause:
                clause = None
            if clause is None and re.match(r"\s*except\b.*:", line):
                clause = depth
            assert clause is None or not re.match(r"\s*return\b", line), f"{path.name}:{number}"


def test_setup_is_short_and_has_one_switch():
    text = (ROOT / "setup.py").read_text()
    assert text.count("\n") < 100
    assert set(re.findall(r"EPOLLKIT_\w+", text)) == {"EPOLLKIT_DEBUG"}


def test_runtime_dependencies_are_psutil_and_rich():
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r"^dependencies = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert found
    assert sorted(re.findall(r'"(\w+)', found.group(1))) == ["psutil", "rich"]


def test_what_users_compile_against_is_installed():
    import epollkit
    where = Path(epollkit.__file__).parent
    for path in [*sources("*.pxd", "*.pyi", "*.h"), PACKAGE / "py.typed"]:
        assert (where / path.relative_to(PACKAGE)).is_file(), f"{path.name} is not installed"


def test_readme_says_the_two_commands_that_ci_and_a_newcomer_run():
    readme = (ROOT / "README.md").read_text()
    test_command = "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox"
    assert "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/epollkit demo" in readme
    assert test_command in readme
    assert test_command in (ROOT / ".ci" / "run").read_text()


def test_every_example_is_run_by_a_test():
    """A folder as a whole, a file as a program; one that is none belongs to others. The README knows them all."""
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py") if path != Path(__file__))
    examples = [path for path in (ROOT / "examples").iterdir()
                if path.name not in ("README.md", "__pycache__")]
    files = {path.stem: path.read_text() for path in examples if path.suffix == ".py"}
    readme = (ROOT / "examples" / "README.md").read_text()
    assert examples
    for path in examples:
        if path.is_dir():
            assert f'"examples" / "{path.name}"' in tests, f"nothing runs examples/{path.name}"
        elif "__main__" in files[path.stem]:
            assert f'example("{path.name}", ' in tests, f"nothing runs examples/{path.name}"
        else:
            assert any(f"from {path.stem} import" in text for text in files.values()), f"nobody needs {path.name}"
        assert f"[{path.name}]({path.name})" in readme, f"examples/README.md does not name {path.name}"


def test_every_scenario_has_its_tests_or_says_why_not():
    """docs/scenarios.md: 1 to 32; each test that it names exists, and its docstring begins with the number."""
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", (ROOT / "docs" / "scenarios.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 33))
    for number, tests in rows:
        named = re.findall(r"`(test_\w+\.py)::(\w+)`", tests)
        assert named or tests.startswith("later: "), f"scenario {number} has no test"
        assert tests.count("`") == 2 * len(named)
        for file, name in named:
            found = [node for node in ast.walk(ast.parse((ROOT / "tests" / file).read_text()))
                     if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name]
            assert found, f"{file} has no {name}"
            docstrings = [ast.get_docstring(found[0]) or "", *(
                ast.get_docstring(node) or "" for node in found[0].body if isinstance(node, ast.FunctionDef))]
            assert any(text.startswith(f"{number}. ") for text in docstrings), f"{file}::{name} is not of {number}"


def test_tests_do_not_sleep():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        code = re.sub(r'"[^"\n]*"|#[^\n]*', "", path.read_text())
        assert not re.search(r"\bsleep\s*\(", code), f"{path.name} sleeps"


def test_scripts_are_valid():
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
