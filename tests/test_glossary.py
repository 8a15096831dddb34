"""One meaning for each name, in the words of the field: what of it can be checked on the source itself."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "p2p").rglob("*.py"))
NODES = [(path.relative_to(ROOT), node) for path in FILES for node in ast.walk(ast.parse(path.read_text("utf-8")))]
CLASSES = [(path, node) for path, node in NODES if isinstance(node, ast.ClassDef)]


def test_no_class_name_has_two_meanings() -> None:
    places = defaultdict(list)
    for path, node in CLASSES:
        places[node.name].append(str(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_limits_begin_with_min_or_max() -> None:
    names = {
        f"{path}: {target.id}"
        for path, node in NODES
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id.isupper()
    }
    assert len(names) > 100
    superlatives = re.compile(r"(MOST|FEWEST|LONGEST|SHORTEST|LARGEST|SMALLEST)_")
    assert sorted(filter(superlatives.search, names)) == []


def test_every_exception_ends_in_error() -> None:
    exceptions = {"Exception", "BaseException"}
    while True:  # until no class is known to inherit from one that is
        found = {node.name for _, node in CLASSES for base in node.bases if ast.unparse(base) in exceptions}
        found |= {
            ast.unparse(base) for _, node in CLASSES for base in node.bases if ast.unparse(base).endswith("Error")
        }
        if found <= exceptions:
            break
        exceptions |= found
    own = {node.name for _, node in CLASSES} & exceptions
    assert "ConfigError" in own
    assert {name for name in own if not name.endswith("Error")} == set()
