"""The import graph: every part of the package imports only parts below it, and importing the package loads no JAX."""

import ast
import pathlib
import subprocess
import sys

import pytest

from tests import ROOT

PACKAGE = ROOT / "nextgpt_jax"
# From high to low; the parts of one line may not import each other, unless they are one part.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("evaluation", "serving", "building"),
    ("aot", "pipeline", "prepare"),
    ("training",),
    ("inference",),
    ("weights", "data", "generation"),
    ("models", "media"),
    ("compiler", "templates", "chat"),
    ("sharding", "mesh", "prompts", "json_files", "config_files"),
    ("config", "modalities", "files"),
    ("errors", "chips", "flops", "allocator"),
)
LEVELS = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part_of(file: pathlib.Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: pathlib.Path) -> set[str]:
    """The modules that a file imports anywhere, inside functions too, but not for type checkers only."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_parts_import_only_lower_parts(file):
    part = part_of(file)
    assert part in LEVELS, f"{part} has no place in LAYERS"
    for module in imported(file):
        top, *below = module.split(".")
        assert top not in ("convert", "configs", "benchmarks", "examples", "tests"), f"{file} imports {module}"
        if top == "nextgpt_jax" and below and below[0] in LEVELS and below[0] != part:
            assert LEVELS[below[0]] > LEVELS[part], f"{part} imports {below[0]} ({file.name}: {module})"


def test_packages_have_no_circles():
    """Between the files of a part, too."""
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
    graph = {}
    for name, file in names.items():
        hit = {m if m in names else m.rpartition(".")[0] for m in imported(file)}
        graph[name] = {m for m in hit if m in names and m != name}
    done, path = set(), []

    def visit(name):
        assert name not in path, " > ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in sorted(graph[name]):
                visit(other)
            done.add(path.pop())

    for name in graph:
        visit(name)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, nextgpt_jax; print(*sorted({'jax', 'flax', 'numpy', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []
