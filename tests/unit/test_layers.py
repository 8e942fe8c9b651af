"""Imports point one way only, heavy libraries stay in their places, and every module says what is public."""

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the bottom to the top: a module imports from its own part and from the rows above its own.
LAYERS = (
    ("plain_text",),
    ("errors", "legacy", "schema", "statistics"),
    ("config", "failures", "noise"),
    ("presets", "metric_names"),
    ("storage", "telemetry"),
    ("runs", "events"),
    ("packing", "session", "exported_metrics", "waiting"),
    ("preflight", "text"),
    ("inputs",),
    ("data", "modeling"),
    ("scoring", "training", "evaluation"),
    ("jobs",),
    ("api",),  # the jobs as functions
)
FRONT = "wsdm_ray"
"""The package itself. It imports its public names when they are first used, and for type checkers alone."""
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

RAY = {
    "wsdm_ray.exported_metrics",
    "wsdm_ray.preflight.nodes",  # asks every node what it has, by a task
    "wsdm_ray.scoring.cluster",
    "wsdm_ray.scoring.coordinator",
    "wsdm_ray.scoring.progress",
    "wsdm_ray.scoring.ray_data",
    "wsdm_ray.scoring.read_ahead",
    "wsdm_ray.session",
    "wsdm_ray.training.progress",
    "wsdm_ray.training.preemption",
    "wsdm_ray.training.ray_train",
    "wsdm_ray.training.worker",
    "wsdm_ray.waiting",
}
TORCH = {"modeling", "scoring", "training"}


def part_of(module: str) -> str:
    """`scoring` for wsdm_ray.scoring.plan, `jobs` for jobs.score, `` for wsdm_ray itself."""
    names = module.split(".")
    return "jobs" if names[0] == "jobs" else ".".join(names[1:2])


def modules() -> dict[str, Path]:
    """Every module of the two packages by its dotted name."""
    found = {}
    for path in sorted([*ROOT.glob("wsdm_ray/**/*.py"), *ROOT.glob("jobs/**/*.py")]):
        names = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def imports(name: str) -> set[str]:
    """What a module imports, also within functions: `a.b` for `import a.b`, and for `from a import b`.

    The latter only where b is a module of ours, and `a` else.
    """
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: line {node.lineno}: a relative import hides where it points"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else str(node.module))
    return found


def is_or_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    mine = part_of(name)
    for target in imports(name):
        if target.split(".")[0] not in ("wsdm_ray", "jobs") or part_of(target) in (mine, "") or name == FRONT:
            continue
        theirs = part_of(target)
        assert LEVEL[theirs] < LEVEL[mine], f"{name} imports {target}: {mine} stands beside or below {theirs}"


def test_the_package_itself_imports_its_public_names_for_type_checkers_alone():
    """`import wsdm_ray` loads nothing; what `__getattr__` finds is what type checkers see."""
    (checked,) = (node for node in TREES[FRONT].body if isinstance(node, ast.If))
    assert ast.unparse(checked.test) == "TYPE_CHECKING"
    seen = {}
    for node in checked.body:
        assert isinstance(node, ast.ImportFrom)
        seen |= {alias.name: node.module for alias in node.names}
    found = importlib.import_module(FRONT)
    assert seen == {name: found.MODULES.get(name, found.JOBS_MODULE) for name in found.__all__}
    within = [node for node in ast.walk(checked) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in ast.walk(TREES[FRONT]):
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in within:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            assert {str(name).split(".")[0] for name in names} <= sys.stdlib_module_names


def test_every_part_has_its_layer():
    assert {part_of(name) for name in MODULES} - {""} <= set(LEVEL)


def test_no_import_goes_in_a_circle():
    graph = {name: {target for target in imports(name) if target in MODULES} for name in MODULES}
    graphlib.TopologicalSorter(graph).prepare()


def test_ray_and_torch_stay_in_their_places():
    for name in MODULES:
        found = imports(name)
        if any(is_or_in(target, "ray") for target in found):
            assert name in RAY or part_of(name) == "jobs", f"{name} imports ray"
        if any(is_or_in(target, "torch") for target in found):
            assert part_of(name) in TORCH, f"{name} imports torch"


def test_no_module_of_odds_and_ends():
    for name in MODULES:
        assert name.split(".")[-1].strip("_") not in {
            "common",
            "helper",
            "helpers",
            "misc",
            "util",
            "utils",
        }, name


@pytest.mark.parametrize("name", MODULES)
def test_all_is_exact(name):
    """`__all__` names what there is, and stands in every module that has something to offer."""
    public = [
        node.name
        for node in TREES[name].body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    # A job that is a command line only offers nothing to import.
    if not public or (
        part_of(name) == "jobs" and '__name__ == "__main__"' in MODULES[name].read_text("utf-8")
    ):
        return
    module = importlib.import_module(name)
    assert hasattr(module, "__all__"), f"{name} has no __all__"
    assert len(set(module.__all__)) == len(module.__all__)
    for public_name in module.__all__:
        assert hasattr(module, public_name), f"{name}.__all__ names {public_name}, which is not there"


def module_names(tree: ast.AST) -> dict[str, str]:
    """The modules of ours that a module's code can name: the name in the code to the module."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return {name: module for name, module in found.items() if module in MODULES}


def attributes(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """What code takes from modules of ours by a dot: the module, the name and the line."""
    names = module_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            module = names.get(ast.unparse(node.value))
            if module is not None and f"{module}.{node.attr}" not in MODULES:
                yield module, node.attr, node.lineno


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import wsdm_ray.storage as s\ns.join", [("wsdm_ray.storage", "join", 2)]),
        ("from wsdm_ray import storage\nstorage.join", [("wsdm_ray.storage", "join", 2)]),
        ("from wsdm_ray import storage as s\n(s\n .join('a').b)", [("wsdm_ray.storage", "join", 2)]),
        ("import wsdm_ray.storage\nwsdm_ray.storage.join", [("wsdm_ray.storage", "join", 2)]),
        ("from wsdm_ray.storage import join\njoin.name", []),
    ],
)
def test_attributes_of_modules_are_found(code, expected):
    assert list(attributes(ast.parse(code))) == expected


def test_what_others_take_by_a_dot_is_public():
    """Across parts only what `__all__` names is used, also of a module imported whole."""
    for name in MODULES:
        for module, attribute, line in attributes(TREES[name]):
            if part_of(module) not in (part_of(name), ""):
                offered = getattr(importlib.import_module(module), "__all__", ())
                assert attribute in offered, f"{name}:{line}: {attribute} is not in {module}.__all__"


def test_what_others_import_is_public():
    """Across parts only what `__all__` names is used: the rest may change without a word."""
    for name in MODULES:
        for node in ast.walk(TREES[name]):
            if not isinstance(node, ast.ImportFrom) or node.module not in MODULES:
                continue
            if part_of(node.module) in (part_of(name), ""):
                continue
            offered = getattr(importlib.import_module(node.module), "__all__", ())
            for alias in node.names:
                if f"{node.module}.{alias.name}" not in MODULES:
                    assert alias.name in offered, f"{name} imports {alias.name}, not in {node.module}.__all__"


JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("[a-z]*.py"))

LIGHT = """
import runpy, sys
for job in sys.argv[1:]:
    sys.argv = ["jobs", "--help"]
    try:
        runpy.run_module(f"jobs.{job}", run_name="__main__")
    except SystemExit as leaving:
        assert not leaving.code, leaving.code
    print(job, sorted({"torch", "ray", "transformers"} & set(sys.modules)), file=sys.stderr)
"""


def test_the_help_of_a_job_loads_no_model_library():
    """It takes less than a second, and works where neither torch nor ray is installed."""
    run = subprocess.run(
        [sys.executable, "-c", LIGHT, *JOBS], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert run.stderr.splitlines() == [f"{job} []" for job in JOBS]
    assert run.stdout.count("--output") >= len(JOBS)


def test_jobs_load_no_model_library_before_they_need_one():
    """Those that need none run where neither torch nor ray is installed; the others check paths first."""
    jobs = ("arena", "prepare", "ensemble", "evaluate", "train", "score", "pseudolabel")
    code = f"""
import importlib, sys
from jobs._registry import JOBS
for job in {jobs}:
    importlib.import_module(JOBS[job].function.partition(":")[0])
    print(job, sorted({{"torch", "ray", "transformers"}} & set(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    assert run.stdout.splitlines() == [f"{job} []" for job in jobs]


def test_configs_load_neither_torch_nor_ray():
    names = [
        f"wsdm_ray.{part}"
        for parts in LAYERS[: LEVEL["runs"] + 1]
        for part in parts
        if f"wsdm_ray.{part}" in MODULES
    ]
    code = f"import sys, {', '.join(names)}; print(sorted({{'torch', 'ray'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"


def test_readers_of_score_load_no_model_library():
    """Each is a process of its own, and imports take longer than a unit."""
    code = "import sys, wsdm_ray.scoring.encode; print({'torch', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/benchmarks/*.py")), ids=lambda path: path.name)
def test_what_benchmarks_import_is_there(path):
    """Benchmarks run rarely, on machines that are lent: a renamed function would be noticed there only."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("wsdm_ray", "jobs"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                known = hasattr(module, alias.name) or f"{node.module}.{alias.name}" in MODULES
                assert known, f"{path.name}: line {node.lineno}: {node.module} has no {alias.name}"
