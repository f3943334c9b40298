"""The rooms and the one way in which they import each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Every room, lowest first; a room imports itself and rooms of lower ranks.
RANKS = [
    {"pallas_kernels"},
    {"version", "request", "chat_template", "sharding", "config", "shipped", "compile_cache"},
    {"tokenizer", "quantize", "ragged", "cache", "pages", "stream"},
    {"scheduler", "models", "grammar"},
    {"weights", "sampler", "toolcalls"},
    {"generate", "calibrate"},
    {"step", "reading"},
    {"engine"},
    {"roofline", "topology"},
    {"model"},
    {"perplexity", "bench", "server", "harness"},
    {"quality"},
    {"cli"},
]
WITHOUT_JAX = {
    "request",
    "chat_template",
    "tokenizer",
    "grammar",
    "toolcalls",
    "pages",
    "stream",
    "scheduler",
    "version",
    "shipped",
}
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
FILES = sorted([*(ROOT / "jaxinfer").rglob("*.py"), *(ROOT / "pallas_kernels").rglob("*.py")])


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "pallas_kernels" if parts[0] == "pallas_kernels" else parts[1]


def imports(tree: ast.AST) -> set[str]:
    """The dotted names of everything imported anywhere in a module."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(names: set[str]) -> set[str]:
    own = [name.split(".") for name in names]
    found = {parts[1] for parts in own if parts[0] == "jaxinfer" and len(parts) > 1}
    return found | (
        {"pallas_kernels"} if any(parts[0] == "pallas_kernels" for parts in own) else set()
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    room, names = room_of(path), imports(ast.parse(path.read_text()))
    if room in ("__init__", "__main__"):
        return
    assert room in RANK, f"{room} needs a place in RANKS"
    for other in rooms(names) - {room}:
        assert other in RANK, f"{path.name} imports {other}, which has no place in RANKS"
        assert RANK[other] < RANK[room], f"{room} must not import {other}"
    if room in WITHOUT_JAX:
        assert not {name.split(".")[0] for name in names} & {"jax", "jaxlib", "flax"}
        assert rooms(names) <= WITHOUT_JAX


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_waits_inside_a_function(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            inner = [n for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom))]
            assert not inner, f"{path}: line {inner[0].lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_jit_lives_where_programs_do(path):
    # bench, calibrate, quality, topology and a kernel's bench have programs of their own; a
    # kernel's launch is lowered once for all layers
    programs = ("step", "reading", "generate", "calibrate", "bench", "quality", "topology")
    if room_of(path) in programs or path.name in ("bench.py", "launch.py"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("jax", "jit"), f"{path}: line {node.lineno}"


def test_modules_form_no_cycle():
    modules = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in FILES
    }
    edges = {}
    for name, path in modules.items():
        wanted = imports(ast.parse(path.read_text()))
        wanted = {w if w in modules else w.rpartition(".")[0] for w in wanted}
        edges[name] = (wanted & set(modules)) - {name}
    done: set[str] = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in edges[name]:
                visit(other, [*trail, name])
            done.add(name)

    for name in modules:
        visit(name, [])


def test_kernels_stand_alone():
    code = "import sys, pallas_kernels.causal_attention, pallas_kernels.ragged_attention; "
    code += "sys.exit(any(name.split('.')[0] in ('jaxinfer', 'flax') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
