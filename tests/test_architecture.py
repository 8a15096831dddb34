"""The rules that keep the rooms apart, checked on the source itself."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
# Lowest first. A module imports its own room and the rungs below it, never beside or above.
RUNGS = [
    {"errors", "cli", "progress", "documents"},
    {"storage"},
    {"scenes"},
    {"model"},
    {"data"},
    {"reports"},
    {"synthetic", "doctor"},
    {"preparation", "training", "evaluation", "comparison", "translation"},
    {"benchmark"},
]
HEIGHT = {room: height for height, rung in enumerate(RUNGS) for room in rung}
GROUND = RUNGS[0]
WITHOUT_RAY = ("storage", "scenes", "model")
# The public names of the package, on which code outside rests.
PUBLIC = {"ModelConfig", "PatchDiscriminator", "Pix2Pix", "Translator", "UNetGenerator", "load_generator"}
JOB_LINES = 15

MODULES = sorted(path for path in (ROOT / "p2p").rglob("*.py") if path != ROOT / "p2p" / "__init__.py")
JOBS = sorted((ROOT / "jobs").glob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Every module that the file imports anywhere, in full: `from p2p.storage import images` is p2p.storage.images."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import on line {node.lineno}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down_only(path: Path) -> None:
    own = room_of(name_of(path))
    assert own in HEIGHT, f"the room p2p/{own} has no place in RUNGS"
    for module in sorted(imported(path)):
        if not module.startswith("p2p."):
            continue
        room = room_of(module)
        assert room in HEIGHT, f"{name_of(path)} imports {module}, which belongs to no room"
        beside = own in GROUND and room in GROUND
        assert room == own or beside or HEIGHT[room] < HEIGHT[own], f"{name_of(path)} imports {module}, not below it"


@pytest.mark.parametrize("path", JOBS, ids=name_of)
def test_jobs_hold_no_logic(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= JOB_LINES
    assert imported(path) and all(module.startswith("p2p.") for module in imported(path))
    body = ast.parse(source).body
    assert {type(node) for node in body} <= {ast.Expr, ast.Try, ast.If}
    for node in body:
        if isinstance(node, ast.Try):  # where nothing is installed, one line says so
            assert {type(inner) for inner in node.body} == {ast.ImportFrom}
            assert [type(inner) for handler in node.handlers for inner in handler.body] == [ast.Raise]


def test_every_job_of_the_interface_exists() -> None:
    assert {path.stem for path in JOBS} >= {"prepare", "train", "evaluate", "translate", "benchmark"}


_WITHOUT_RAY = """
import importlib, sys

class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")

sys.meta_path.insert(0, NoRay())
import p2p, p2p.errors, p2p.model.config, p2p.scenes.tiling
assert "torch" not in sys.modules  # the names of the package bring it when they are asked for
for name in sys.argv[1:]:
    importlib.import_module(name)

import numpy, tempfile, torch
from p2p.scenes.tiling import TilePlan
from p2p.storage import filesystems, images

folder = tempfile.mkdtemp()
scene = numpy.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=numpy.uint8)
filesystems.write_bytes(folder + "/scene.png", images.encode(scene))
scene = images.decode(filesystems.read_bytes(folder + "/scene.png"))
plan = TilePlan(70, 90, 64, 16)
assert (plan.join(plan.split(scene)) == scene).all()
p2p.Translator, p2p.Pix2Pix, p2p.load_generator
generator = p2p.UNetGenerator(num_downs=5, ngf=4)
assert generator(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)
assert not any(name.split(".")[0] == "ray" for name in sys.modules)
"""


def test_storage_scenes_and_model_work_where_ray_is_not_installed() -> None:
    names = [name_of(path) for path in MODULES if room_of(name_of(path)) in WITHOUT_RAY]
    assert names
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_RAY, *names], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


_CHEAP = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({name.split(".")[0] for name in sys.modules} & {"ray", "torch", "torchvision", "matplotlib", "pandas"}))
"""


def test_help_and_usage_errors_wait_for_neither_torch_nor_ray() -> None:
    rooms = sorted({module.rpartition(".")[0] for path in JOBS for module in imported(path)})
    done = subprocess.run(
        [sys.executable, "-c", _CHEAP, "p2p", *rooms], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


def test_the_public_names_are_these() -> None:
    import p2p

    assert set(p2p.__all__) == PUBLIC
    assert set(dir(p2p)) >= PUBLIC
    for name in PUBLIC:
        assert getattr(p2p, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'UnetGenerator'"):
        p2p.UnetGenerator  # noqa: B018


def project_files() -> list[Path]:
    """Files of the project as git would commit them; all that are not hidden where there is no repository."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        names = [ROOT / name for name in done.stdout.split("\0") if name]
    else:
        names = [path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.parts)]
    return [path for path in names if path.is_file()]


@pytest.mark.parametrize(("name", "least"), [("constraints.txt", 50), ("constraints-metrics.txt", 5)])
def test_the_pins_name_packages_versions_and_hashes_only(name: str, least: int) -> None:
    text = (ROOT / name).read_text()
    entries = text.replace("\\\n", " ").splitlines()
    assert len(entries) >= least
    for entry in entries:
        requirement, *hashes = entry.split(" --hash=")
        assert "==" in requirement
        assert hashes and all(hash.strip().startswith("sha256:") for hash in hashes), requirement
        assert "://" not in entry and "@" not in requirement and not entry.startswith("-"), requirement


def test_no_file_names_a_package_index() -> None:
    # Which index serves a package is the choice of the machine that installs it.
    words = [a + b for a, b in (("pypi", ".org"), ("pythonhosted", ".org"), ("--index", "-url"), ("--find", "-links"))]
    words += ["download.py" + "torch.org/whl"]
    for path in project_files():
        if path.suffix in {".png", ".jpg", ".gif", ".webp"}:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not [word for word in words if word in text], path


TABLE_READERS = {
    *("ParquetFile", "ParquetDataset", "read_table", "read_pandas", "read_schema", "read_metadata", "read_parquet"),
    *("read_datasource", "read_webdataset", "read_feather", "dataset", "parquet_dataset", "FileFormat"),
    *("open_file", "open_stream", "read_message", "read_record_batch"),
}
TABLE_LIBRARIES = {"pq", "pa", "ds", "ipc", "feather", "pd", "data", "parquet", "pyarrow", "pandas", "polars", "duckdb"}


def calls_of(path: Path) -> list[tuple[int, str, str]]:
    """Line, object and method of every call `object.method(…)`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    return [(node.lineno, ast.unparse(node.func.value), node.func.attr) for node in calls]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_tables_are_opened_in_one_place(path: Path) -> None:
    """Reading Parquet in any other way than by `p2p.storage.parquet` can run code that the file's author chose."""
    if name_of(path) == "p2p.storage.parquet":
        return
    for line, owner, method in calls_of(path):
        is_reader = method in TABLE_READERS and owner.rpartition(".")[2] in TABLE_LIBRARIES
        assert not is_reader, f"{name_of(path)}:{line} reads a table with {owner}.{method}; use p2p.storage.parquet"
    for module in imported(path):  # `from pyarrow.parquet import read_table`
        library, _, name = module.rpartition(".")
        assert not (library.startswith("pyarrow") and name in TABLE_READERS), f"{name_of(path)} imports {module}"


def test_only_what_p2p_has_pickled_itself_is_unpickled() -> None:
    unpicklers = {("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler"), ("cloudpickle", "loads")}
    found = {name_of(path) for path in MODULES for _, owner, method in calls_of(path) if (owner, method) in unpicklers}
    assert found == {"p2p.preparation.job", "p2p.storage.child"}
    for path in MODULES:
        source = path.read_text(encoding="utf-8").replace("safetensors.torch.load(", "")
        assert source.count("torch.load(") == source.count("weights_only=True"), name_of(path)


LIBRARY = ("model", "scenes", "data", "storage")


def test_libraries_name_parameters_and_only_the_command_line_knows_options() -> None:
    from p2p.benchmark import BenchmarkConfig
    from p2p.comparison import CompareConfig
    from p2p.evaluation import EvaluateConfig
    from p2p.preparation import PrepareConfig
    from p2p.training import TrainConfig
    from p2p.translation import TranslateConfig

    configs: tuple[Any, ...] = (
        *(BenchmarkConfig, CompareConfig, EvaluateConfig, PrepareConfig, TrainConfig, TranslateConfig),
    )
    options = {"--" + field.name.replace("_", "-") for config in configs for field in dataclasses.fields(config)}
    assert {"--data", "--crop-size"} <= options
    for path in MODULES:
        if room_of(name_of(path)) in LIBRARY:
            named = options & set(re.findall(r"--[a-z][a-z0-9-]*", path.read_text(encoding="utf-8")))
            assert not named, f"{name_of(path)} names {named}; raise ConfigError(field, ...)"
