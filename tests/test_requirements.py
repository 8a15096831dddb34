"""What p2p says it needs: all that it imports, at versions without known holes, and pinned as it says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = {canonicalize_name(item.name): item for item in map(Requirement, PROJECT["dependencies"])}
EXTRAS = {
    extra: {canonicalize_name(item.name): item for item in map(Requirement, requirements)}
    for extra, requirements in PROJECT["optional-dependencies"].items()
}
PINS = [Requirement(line) for line in re.findall(r"(?m)^(\S+==[^\\]+)", (ROOT / "constraints.txt").read_text())]

# The last version of each that let foreign data run code, read what it should not or overflow a buffer.
VULNERABLE = {
    "aiohttp": "3.14.3",
    "fsspec": "2026.5.0",  # its reference:// ran templates of the file it read (CVE-2026-104851)
    "jinja2": "3.1.5",
    "pillow": "12.99",  # buffer overflows (CVE-2026-96639, CVE-2026-112403)
    "pyarrow": "14.0.0",  # CVE-2023-47248
    "pyyaml": "5.3.1",
    "ray": "2.54.99",  # the schema of a Parquet file ran code (CVE-2026-41486)
    "torch": "2.5.1",  # CVE-2025-32434
}


def imported(folder: str) -> dict[str, str]:
    """Each third-party module that a file below `folder` imports anywhere, and one such file."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found |= {name.split(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | {"p2p", "jobs"}}


@pytest.mark.parametrize("folder", ["p2p", "jobs"])
def test_every_module_that_is_imported_belongs_to_a_declared_dependency(folder: str) -> None:
    owners = packages_distributions()
    for module, path in imported(folder).items():
        packages = {canonicalize_name(owner) for owner in owners.get(module, [module])}
        declared = {*NEEDED, *(name for extra in EXTRAS for name in EXTRAS[extra] if extra != "dev")}
        assert packages & declared, f"{path} imports {module}; declare one of {packages} in pyproject.toml"


@pytest.mark.parametrize("name", VULNERABLE)
def test_no_version_with_a_known_hole_is_admitted(name: str) -> None:
    assert not NEEDED[name].specifier.contains(VULNERABLE[name])


def test_file_systems_are_held_to_the_version_of_fsspec() -> None:
    assert NEEDED["s3fs"].specifier == EXTRAS["gcs"]["gcsfs"].specifier == NEEDED["fsspec"].specifier


def test_older_gpu_machines_are_admitted() -> None:
    assert NEEDED["torch"].specifier.contains("2.11.0") and NEEDED["torchvision"].specifier.contains("0.26.0")


@pytest.mark.parametrize("name", sorted({*NEEDED, *EXTRAS["dev"]}))
def test_it_is_pinned_within_its_bounds(name: str) -> None:
    pins = [pin for pin in PINS if canonicalize_name(pin.name) == name]
    assert pins, f"{name} has no pin; run make lock"
    bounds = {**EXTRAS["dev"], **NEEDED}[name].specifier
    for pin in pins:
        (version,) = pin.specifier
        assert bounds.contains(version.version), f"{pin} is not {bounds}; run make lock"


def test_make_lists_how_to_audit_the_pins() -> None:
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(r"(?m)^  make audit +\S", told)
    recipe = subprocess.run(["make", "--dry-run", "audit"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pip-audit --requirement constraints.txt" in recipe
