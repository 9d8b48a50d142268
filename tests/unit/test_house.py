"""The rules of the house: which module may import what, what is packaged, and what no file may hold."""

from __future__ import annotations

import ast
import contextlib
import fnmatch
import graphlib
import importlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from priorkit.pipeline.doctor.requirements import CHAIN, DISTRIBUTIONS, EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest itself needs it below Python 3.11

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "priorkit"
FOLDERS = ("pipeline", "prior", "recipes")

STANDARD_LIBRARY = sys.stdlib_module_names | {"compression"}
"""Modules of Python itself, those of later versions than this one included."""

SINGLE_HOMES = {
    "ray": {"pipeline/compute/parallel.py", "prior/train/on_ray.py"},
    "open_clip": {"pipeline/clip/encoder.py", "recipes/demo/train_clip.py"},
    "img2dataset": {"pipeline/download/decoding/resize.py", "pipeline/download/img2dataset_engine/process.py"},
    "embedding_reader": {"pipeline/adopt/vectors.py"},
    "diffusers": {"prior/decode/pipelines.py"},
}
"""Heavy packages, and the only files that may import them."""


@dataclass(frozen=True)
class Import:
    """One import statement's target."""

    target: str
    """Absolute dotted name of the module, `priorkit` standing for the root."""
    relative: bool
    at_start: bool
    """Whether it runs when the module is imported: not in a function and not under TYPE_CHECKING."""


def source_files() -> list[Path]:
    files = [ROOT / "cli.py", ROOT / "__init__.py", ROOT / "__main__.py"]
    for folder in FOLDERS:
        files += sorted((ROOT / folder).rglob("*.py"))
    return files


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join((PACKAGE, *(part for part in parts if part != "__init__")))


MODULES = {module_name(path): path for path in source_files()}


def imports_of(path: Path) -> list[Import]:
    return list(_walk(ast.parse(path.read_text(encoding="utf-8")), path, True))


def _walk(node: ast.AST, path: Path, at_start: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, False, at_start)
        elif isinstance(child, ast.ImportFrom):
            package = module_name(path).split(".")
            if path.name != "__init__.py":
                package = package[:-1]
            base = [*package[: len(package) - child.level + 1]] if child.level else []
            module = ".".join([*base, *(child.module.split(".") if child.module else [])])
            for alias in child.names:
                inner = f"{module}.{alias.name}"  # `from . import run` names a module
                yield Import(inner if inner in MODULES else module, bool(child.level), at_start)
        elif isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for part in child.body:
                yield from _walk(ast.Module([part], []), path, False)
            for part in child.orelse:
                yield from _walk(ast.Module([part], []), path, at_start)
        else:
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, path, at_start and not lazy)


IMPORTS = {name: imports_of(path) for name, path in MODULES.items()}


def tracked_files() -> list[Path]:
    """Files that are committed or would be with `git add .`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_walk_sees_the_imports_that_are_known() -> None:
    """The other tests mean nothing if the walk is blind."""
    assert len(MODULES) > 30
    assert Import("priorkit.pipeline.commands.download", True, True) in IMPORTS["priorkit.cli"]
    assert Import("ray", False, False) in IMPORTS["priorkit.pipeline.compute.parallel"]
    assert Import("priorkit.pipeline.download.stage", True, False) in IMPORTS["priorkit"]
    assert Import("priorkit.recipes.chain", True, False) in IMPORTS["priorkit.recipes.commands.run"]
    assert Import("torch", False, True) in IMPORTS["priorkit.prior.network.network"]


LAYERS = (
    (
        "pipeline.errors",
        "pipeline.explain",
        "pipeline.json_text",
        "pipeline.nearest",
        "pipeline.yaml_text",
        "pipeline.settings",
    ),
    ("pipeline.contract",),
    ("pipeline.compute", "pipeline.urls", "pipeline.images"),
    ("pipeline.clip", "pipeline.read", "pipeline.display", "pipeline.doctor", "pipeline.download"),
    ("pipeline.adopt", "pipeline.embed", "pipeline.inspect"),
    ("pipeline.config",),
    ("pipeline.commands",),
    ("prior.network",),
    ("prior.objective",),
    ("prior.sampling",),
    ("prior.model",),
    ("prior.interchange",),
    ("prior.evaluate",),
    ("prior.train", "prior.report", "prior.decode"),
    ("prior.commands",),
    ("recipes.demo_picture", "recipes.recipe"),
    ("recipes.demo_list", "recipes.chain", "recipes.status", "recipes.demo_run", "recipes.from_dalle2"),
    ("recipes.commands",),
)
"""Packages and modules from the lowest layer to the highest; no import points up."""
FORBIDDEN = (
    ("pipeline.download", ("pipeline.embed", "pipeline.read", "pipeline.inspect")),
    ("pipeline.adopt", ("pipeline.download", "pipeline.embed", "pipeline.read", "pipeline.inspect")),
    ("pipeline.embed", ("pipeline.download", "pipeline.read", "pipeline.inspect")),
    ("pipeline.read", ("pipeline.download", "pipeline.embed", "pipeline.inspect")),
    ("pipeline.inspect", ("pipeline.download", "pipeline.embed", "pipeline.read")),
    ("pipeline.contract", ("pipeline.settings",)),
    (
        "prior.objective",
        ("prior.network.network", "prior.network.cache", "prior.network.layers", "prior.network.families"),
    ),
    ("prior.objective", ("prior.network.prior_transformer",)),
    (
        "prior.sampling",
        ("prior.network.network", "prior.network.cache", "prior.network.layers", "prior.network.families"),
    ),
    ("prior.sampling", ("prior.network.prior_transformer",)),
)
"""Imports inside a layer, or down, that would join what is to stay apart."""
LARGEST_FOLDER = 16
"""Modules of one folder, `__init__.py` aside."""


def layer_of(module: str) -> int | None:
    name = module.removeprefix(f"{PACKAGE}.")
    return next((at for at, names in enumerate(LAYERS) if any(is_inside(name, layer) for layer in names)), None)


def is_inside(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def is_upward(here: int | None, there: int | None) -> bool:
    return here is not None and there is not None and there > here


def test_every_module_has_a_layer() -> None:
    outside = {
        "priorkit",
        "priorkit.cli",
        "priorkit.__main__",
        "priorkit.pipeline",
        "priorkit.prior",
        "priorkit.recipes",
    }
    without = {name for name in MODULES if layer_of(name) is None and not is_inside(name, "priorkit.recipes.demo")}
    assert without == outside


def test_no_import_points_up() -> None:
    wrong = [
        f"{name} -> {found.target}"
        for name, imports in IMPORTS.items()
        for found in imports
        if is_upward(layer_of(name), layer_of(found.target))
    ]
    assert wrong == []
    top = ("priorkit.cli", "priorkit.__main__")
    assert not [name for name in MODULES if name not in top for found in IMPORTS[name] if found.target in top]


@pytest.mark.parametrize(("package", "others"), FORBIDDEN, ids=lambda value: value if isinstance(value, str) else "")
def test_what_stays_apart_is_not_imported(package: str, others: tuple[str, ...]) -> None:
    wrong = [
        f"{name} -> {found.target}"
        for name, imports in IMPORTS.items()
        for found in imports
        if is_inside(name, f"{PACKAGE}.{package}")
        and any(is_inside(found.target, f"{PACKAGE}.{other}") for other in others)
    ]
    assert wrong == []


def test_no_folder_is_too_large_to_look_through() -> None:
    sizes = {}
    for path in source_files():
        if path.name != "__init__.py":
            sizes[path.parent] = sizes.get(path.parent, 0) + 1
    assert [f"{folder.name}: {size}" for folder, size in sizes.items() if size > LARGEST_FOLDER] == []


@pytest.mark.parametrize("package", sorted(SINGLE_HOMES))
def test_a_heavy_package_has_one_home(package: str) -> None:
    homes = {
        str(MODULES[name].relative_to(ROOT))
        for name, imports in IMPORTS.items()
        if any(found.target.split(".")[0] == package for found in imports)
    }
    assert homes <= SINGLE_HOMES[package]
    assert homes


def test_inside_the_package_imports_are_relative() -> None:
    tops = {PACKAGE, "cli", "tests", *FOLDERS}
    wrong = [
        (name, found.target)
        for name, imports in IMPORTS.items()
        for found in imports
        if not found.relative and found.target.split(".")[0] in tops
    ]
    assert wrong == []


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {
        name: {found.target for found in imports if found.at_start and found.target in MODULES}
        for name, imports in IMPORTS.items()
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle
    assert order.index("priorkit.pipeline.contract.manifest") < order.index("priorkit.pipeline.download.stage")


def test_the_network_knows_torch_and_nothing_else() -> None:
    own = {name for name in MODULES if name.startswith("priorkit.prior.network")} | {"priorkit.pipeline.compute.onednn"}
    settings = {f"priorkit.prior.network.{name}" for name in ("settings", "family", "families")}
    settings.add("priorkit.prior.network.prior_transformer.settings")
    for module in own - settings:
        targets = {found.target for found in IMPORTS[module] if not found.target.startswith(tuple(own))}
        assert {target.split(".")[0] for target in targets} <= {"torch", *sys.stdlib_module_names}, module
    assert "torch" in {found.target for found in IMPORTS["priorkit.prior.network.network"]}


@pytest.mark.parametrize("package", ["train", "model", "objective", "sampling", "evaluate"])
def test_what_trains_and_samples_knows_no_command_line(package: str) -> None:
    modules = [name for name in MODULES if name.startswith(f"priorkit.prior.{package}.")]
    assert modules
    targets = {found.target.split(".")[0] for name in modules for found in IMPORTS[name]}
    assert not targets & {"typer", "rich", "yaml"}


def test_every_module_that_is_imported_has_a_declared_dependency() -> None:
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    own = ("decode", "demo", "report", "transformers", "wandb")
    stated = [*project["dependencies"], *(line for name in own for line in extras[name])]
    declared = {re.split(r"[\[<>=; ]", line)[0].lower().replace("_", "-") for line in stated}
    imported = {found.target.split(".")[0] for imports in IMPORTS.values() for found in imports}
    third_party = imported - STANDARD_LIBRARY - {PACKAGE}
    undeclared = {name for name in third_party if DISTRIBUTIONS.get(name, name.replace("_", "-")) not in declared}
    assert undeclared == set()


STAGE_HOMES = {
    "download": ("pipeline.download.stage", "pipeline.download.decoding.resize"),
    "embed": ("pipeline.embed.stage",),
    "adopt": ("pipeline.adopt.stage",),
    "train": ("prior.train.stage",),
    "evaluate": ("prior.evaluate.stage",),
    "sample, of stored embeddings": (
        "prior.interchange.load",
        "prior.model.sample_file",
        "prior.model.texts",
        "prior.model.export",
    ),
    "sample, of captions": (
        "prior.interchange.load",
        "prior.model.sample_file",
        "prior.model.texts",
        "prior.model.export",
        "pipeline.clip.encoder",
    ),
}
"""The modules that a command loads to run a stage."""


@pytest.mark.parametrize("stage", sorted(STAGE_HOMES))
def test_what_a_stage_is_said_to_need_is_what_it_imports(stage: str) -> None:
    """Also that a stage imports nothing else as it starts, so that an install without the rest runs it."""
    reached, waiting = (
        set(),
        [f"{PACKAGE}.{name}" for name in (*STAGE_HOMES[stage], "pipeline.display.terminal", "cli")],
    )
    while waiting:
        name = waiting.pop()
        if name in MODULES and name not in reached:
            reached.add(name)
            waiting += [found.target for found in IMPORTS[name] if found.at_start]
    at_start = {found.target.split(".")[0] for name in reached for found in IMPORTS[name] if found.at_start}
    third_party = at_start - STANDARD_LIBRARY - {PACKAGE, "typing_extensions"}  # which pydantic brings
    needed = {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in third_party}
    # these their only homes import as late as they can
    needed |= {"open-clip-torch"} if f"{PACKAGE}.pipeline.clip.encoder" in reached else set()
    assert needed == set(CHAIN[stage]) - {"standard-imghdr"}


def test_every_requirement_belongs_to_a_stage_or_an_extra() -> None:
    project = pyproject()["project"]

    def names(lines: list[str]) -> set[str]:
        return {re.split(r"[\[<>=; ]", line)[0].lower().replace("_", "-") for line in lines}

    in_chain = {package for packages in CHAIN.values() for package in packages} | {"standard-imghdr"}
    assert names(project["dependencies"]) == in_chain | {"typing-extensions"}
    extras = project["optional-dependencies"]
    for extra, packages in EXTRAS.items():
        assert names(extras[extra]) == set(packages), extra
    assert set(extras) == set(EXTRAS) | {"docs", "dev"}


def test_arrow_reads_files_without_threads_of_its_own() -> None:
    """They call the Python file, and can hang or abort the interpreter as it ends.

    See https://github.com/apache/arrow/issues/50482 and https://github.com/apache/arrow/issues/45214.
    """
    methods = {"iter_batches", "read_row_group", "read_row_groups", "read_csv"}
    wrong = []
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            called, source = node.func.attr, ast.unparse(node)
            whole_table = called == "read" and ("columns=" in source or "ParquetFile(" in source)
            threaded = (called in methods or whole_table) and "use_threads=False" not in source
            module = source.partition(".")[0]
            if threaded or (module in ("pq", "pa", "pyarrow") and called in ("read_table", "open_csv", "dataset")):
                wrong.append(f"{path.name}: {called}")
    assert wrong == []


def test_no_file_is_a_drawer_for_everything() -> None:
    names = {path.name for path in tracked_files()}
    assert names.isdisjoint({"utils.py", "util.py", "helpers.py", "misc.py", "common.py"})


def test_every_module_says_what_it_is() -> None:
    for path in source_files():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_every_folder_of_modules_is_a_package() -> None:
    """`setup.py` finds the folders that have an `__init__.py`; the others are left out of the wheel."""
    folders = {path.parent for path in source_files()} - {ROOT / "recipes/demo"}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
    assert pyproject()["tool"]["setuptools"]["package-dir"] == {PACKAGE: "."}


@pytest.mark.slow
def test_every_module_of_the_wheel_can_be_imported(tmp_path: Path) -> None:
    for path in tracked_files():
        if path.relative_to(ROOT).parts[0] not in ("tests", "docs"):
            copy = tmp_path / "source" / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip"]
    build = [
        *pip,
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        tmp_path,
        tmp_path / "source",
    ]
    subprocess.run(build, check=True)
    [wheel] = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", tmp_path / "installed", wheel], check=True)
    code = f"""
import importlib, json, pkgutil, sys
sys.path.insert(0, {str(tmp_path / "installed")!r})
import priorkit
def fail(name):
    raise
found = [module.name for module in pkgutil.walk_packages(priorkit.__path__, "priorkit.", fail)]
for name in found:
    importlib.import_module(name)
print(json.dumps([priorkit.__file__, found]))
"""
    origin, found = run_python(code)
    assert Path(origin).is_relative_to(tmp_path)
    in_wheel = {name for name in MODULES if not name.startswith("priorkit.recipes.demo.")} - {PACKAGE}
    assert set(found) == in_wheel


def test_every_file_of_the_recipes_is_packaged() -> None:
    patterns = pyproject()["tool"]["setuptools"]["package-data"]["priorkit.recipes"]
    folder = ROOT / "recipes"
    names = [path.relative_to(folder).as_posix() for path in tracked_files() if path.is_relative_to(folder)]
    assert "demo/open_clip_model.safetensors" in names
    modules = [name for name in names if name.endswith(".py") and not name.startswith("demo/")]
    left_out = [n for n in names if n not in modules and not any(fnmatch.fnmatch(n, p) for p in patterns)]
    assert left_out == []


def test_the_bundled_clip_is_small() -> None:
    assert (ROOT / "recipes/demo/open_clip_model.safetensors").stat().st_size <= 10_000_000


def test_the_version_stands_in_one_place() -> None:
    stated = re.compile(r"^\s*(?:__)?version(?:__)?\s*=\s*[\"']\d", re.MULTILINE)
    places = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path.suffix in (".py", ".toml", ".cfg") and stated.search(path.read_text(encoding="utf-8"))
    ]
    assert places == ["__init__.py"]
    assert pyproject()["project"]["dynamic"] == ["version"]


MACHINE = r"/(?:work|root|tmp/wt?|opt/(?:pypi|wheels)|home/\w+|Users/\w+)/"
MACHINE_IN_BINARY = r"/(?:home|mnt|opt|root|srv|tmp|Users|work)/[\w.-]+/"
INDEX = "index" + "-url|find" + r"-links|pypi\.org/" + r"simple|python" + r"hosted\.org"


def names_of_machines(content: bytes) -> list[str]:
    """Folders of somebody's machine, and package indices, that a file names."""
    if b"\0" in content:  # a database, an archive or weights: what stands before a path there is no part of it
        texts = [content.decode("latin-1"), content[::2].decode("latin-1"), content[1::2].decode("latin-1")]
        return [match.group() for text in texts for match in re.finditer(MACHINE_IN_BINARY, text)]
    pattern = rf"(?<![\w.}}]){MACHINE}|(?:{INDEX})"
    return [match.group() for match in re.finditer(pattern, content.decode("utf-8", errors="ignore"))]


def test_no_file_names_this_machine_or_a_package_index() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}" for path in tracked_files() for name in names_of_machines(path.read_bytes())
    ]
    assert found == []


@pytest.mark.parametrize(("encoding", "folder"), [("UTF-8", "home"), ("UTF-8", "tmp"), ("UTF-16le", "root")])
def test_a_database_that_names_a_machine_is_found(encoding: str, folder: str, tmp_path: Path) -> None:
    """Such as the `.coverage` of somebody's tests: no space stands before a value there."""
    with contextlib.closing(sqlite3.connect(tmp_path / "data")) as base:
        base.execute(f"PRAGMA encoding = '{encoding}'")
        base.execute("CREATE TABLE file (kind TEXT, path TEXT)")
        base.execute("INSERT INTO file VALUES ('file', ?)", (f"/{folder}/somebody/priorkit/cli.py",))
        base.commit()
    assert names_of_machines((tmp_path / "data").read_bytes()) == [f"/{folder}/somebody/"]
    assert names_of_machines(b"url" + b"/work" + b"/x; /usr/lib/x") == []


def run_python(code: str) -> Any:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_priorkit_costs_nothing() -> None:
    code = """
import json, sys
before = set(sys.modules)
import priorkit
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""
    loaded = set(run_python(code))
    assert "priorkit" in loaded
    assert loaded.isdisjoint({"torch", "ray", "pydantic", "numpy", "pyarrow", "typer", "yaml"})


def test_help_of_every_command_loads_nothing_heavy() -> None:
    code = """
import json, sys
from typer.testing import CliRunner
from typer.main import get_command
from priorkit.cli import app

def helps(command, words):
    yield [*words, "--help"]
    for name, inner in getattr(command, "commands", {}).items():
        yield from helps(inner, [*words, name])

asked = list(helps(get_command(app), []))
for words in asked:
    assert CliRunner().invoke(app, words).exit_code == 0, words
print(json.dumps([len(asked), sorted({name.split(".")[0] for name in sys.modules})]))
"""
    asked, loaded = run_python(code)
    assert asked == 22  # the root, sixteen commands, the group of recipes and its four
    heavy = {"torch", "ray", "open_clip", "img2dataset", "pyarrow", "numpy", "embedding_reader", "diffusers"}
    assert heavy.isdisjoint(loaded)


def test_every_public_name_is_there() -> None:
    package = importlib.import_module(PACKAGE)
    assert len(set(package.__all__)) == len(package.__all__)
    assert list(package.__all__) == sorted(package.__all__)
    for name in package.__all__:
        value = getattr(package, name)
        assert name == "__version__" or value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        package.no_such_name  # noqa: B018
