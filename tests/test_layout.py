"""The direction of imports, read from the source; and what importing the package costs."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lpds

ROOT = Path(lpds.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def module(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, *, lazy=True):
    """Modules that a file imports, as dotted names; with ``lazy=False`` those at its top level only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def offenders(folder, forbidden, **options):
    paths = [path for path in FILES if within(module(path), [f"lpds.{folder}"])]
    assert paths
    forbidden = [f"lpds.{name}" for name in forbidden.split()]
    return [(path.name, name) for path in paths for name in imports(path, **options) if within(name, forbidden)]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("methods", "envs files log runner api checkpoint replay collect evaluation policy report cli passport decoders zoo"),
        ("nn", "methods envs decoders replay runner api config"),
        ("report", "methods runner collect replay envs checkpoint api"),
        ("decoders", "methods envs runner replay collect api policy report log checkpoint"),
        ("envs", "methods decoders runner replay collect api policy evaluation report log checkpoint"),
        ("video", "methods runner collect replay checkpoint session cli commands report zoo"),
        ("replay", "methods envs runner collect api log files decoders"),
        ("collect", "methods runner replay api log files decoders checkpoint"),
        ("checkpoint", "methods envs runner collect api log decoders"),
        ("metrics", "methods envs runner collect api log decoders replay types"),
        ("stats", "methods envs runner collect api log decoders replay types"),
        ("runner", "methods decoders api cli report zoo"),
        ("learning", "methods decoders envs runner collect checkpoint api cli report zoo"),
        ("schedule", "methods decoders envs runner collect learning log files"),
    ],
)
def test_data_flows_one_way(folder, forbidden):
    assert offenders(folder, forbidden) == []


def test_methods_do_no_input_or_output():
    outside = ("os", "io", "pathlib", "json", "logging", "gymnasium", "multiprocessing", "subprocess", "time", "safetensors")
    for path in (ROOT / "methods").glob("*.py"):
        assert not [name for name in imports(path) if within(name, outside)], path.name
        assert "open(" not in path.read_text().replace("open_policy(", "")
        assert ".item()" not in path.read_text()  # no device round trip in an update


def test_types_imports_torch_and_typing_only():
    allowed = {*sys.stdlib_module_names, "torch"}
    assert {name.split(".")[0] for name in imports(ROOT / "types.py")} <= allowed


def test_only_the_chunk_arithmetic_and_the_replay_know_how_rewards_compound():
    """gamma to a power appears in one file."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and "gamma" in ast.dump(node.left).lower():
                found.append(path.name)
    assert set(found) == {"chunk.py"}


def test_no_method_is_known_by_name_outside_the_registry():
    from lpds.registry import METHODS

    for path in FILES:
        if path.name == "registry.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and "method" in ast.dump(node.left):
                values = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                assert not values & set(METHODS), f"{path}:{node.lineno} switches on a method's name"


def test_no_caller_guesses_what_a_method_has():
    """Whatever is asked of a method stands in the protocol, which a checker reads; a default is the method's own."""
    names = {"method", "learner"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
                asked = node.args[0]
                name = asked.attr if isinstance(asked, ast.Attribute) else getattr(asked, "id", "")
                assert name not in names, f"{path}:{node.lineno} guesses what a method has"


def test_files_stay_short_enough_to_be_read():
    lines = {path: len(path.read_text().splitlines()) for path in FILES}
    assert [path.name for path, count in lines.items() if count > 400] == []
    assert [path.name for path, count in lines.items() if path.parent.name == "methods" and count > 300] == []
    assert lines[ROOT / "methods" / "lpds.py"] < 250


def test_functions_stay_short_enough_to_be_read():
    def length(node):
        return node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())

    functions = [
        (path.name, node.name, length(node))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [found for found in functions if found[2] > 80] == []


def test_names_of_files_say_what_is_inside():
    assert not {path.stem for path in FILES} & {"utils", "util", "common", "misc", "helpers", "core", "base_utils"}


def test_every_module_of_the_package_is_in_the_map():
    text = (ROOT.parents[1] / "docs" / "architecture.md").read_text()
    modules = [path.name for path in FILES if path.parent == ROOT and not path.name.startswith("__")]
    folders = [f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("__")]
    assert [name for name in modules + folders if f"`{name}" not in text] == []


def test_no_module_shadows_a_public_name():
    modules = {path.stem for path in ROOT.iterdir()} - {"metrics"}
    assert not modules & set(lpds.__all__)


def test_there_is_no_bare_except_and_no_print_outside_the_command_line():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                assert path.parent.name == "commands" or path.name in ("cli.py", "log.py"), f"{path}:{node.lineno} prints"


def python(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def test_a_benchmark_ends_in_one_line_too():
    """Each of them did its work as the program, and a mistaken folder came with a traceback."""
    folder = Path(__file__).parents[1] / "benchmarks"
    own = [path for path in folder.glob("*.py") if "__main__" in path.read_text()]
    assert len(own) > 20
    for path in own:
        assert path.read_text().endswith("    sys.exit(guarded(Path(__file__).stem, main))\n"), path.name
    ended = subprocess.run(
        [sys.executable, str(folder / "final_start.py"), "nowhere"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("final_start: ")
    assert ended.stderr.count("\n") == 1


def test_import_is_light():
    done = python(
        "import sys, lpds, lpds.config, lpds.registry, lpds.tasks, lpds.errors\n"
        "heavy = {'torch', 'scipy', 'gymnasium', 'mujoco', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert lpds.__version__ and 'steer' in dir(lpds)"
    )
    assert done.returncode == 0, done.stderr


def test_settings_of_every_method_are_light_and_runs_are_compared_without_a_method():
    """Three methods' settings lived beside their networks, so that their help and any misspelt option took seconds."""
    done = python(
        "import sys\n"
        "from lpds.registry import METHOD_SETTINGS, METHODS, resolve\n"
        "for name in METHODS: resolve('method', METHOD_SETTINGS, name)\n"
        "assert 'torch' not in sys.modules\n"
        f"folder = {str(Path(__file__).parents[1] / 'results' / 'hopper')!r}\n"
        "import lpds\n"
        "assert str(lpds.compare([f'{folder}/{name}/seed0' for name in ('lpds', 'dppo', 'base+chain')]))\n"
        "found = [name for name in sys.modules if name.startswith('lpds.methods')]\n"
        "assert not found, found"
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_opens_and_an_unknown_one_is_an_attribute_error():
    done = python(
        "import lpds\n"
        "for name in lpds.__all__: getattr(lpds, name)\n"
        "import lpds.api, lpds.runner, lpds.doctor, lpds.cli\n"
        "assert callable(lpds.evaluate) and callable(lpds.check) and callable(lpds.steer)\n"
        "try: lpds.ster\n"
        "except AttributeError as error: assert 'ster' in str(error)\n"
        "else: raise SystemExit('no error')"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_an_old_python_is_refused_in_one_line_before_there_is_an_environment(tmp_path):
    """It was pip that said so, below an environment which then had to be removed by hand."""
    root = Path(__file__).parents[1]
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path / name)
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(["make", f"PYTHON={old}", "check"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert "make PYTHON=python3.12" in done.stderr
    assert not (tmp_path / ".venv").exists()
