"""The dashboard asks for metrics that exist, with labels that they have."""

from __future__ import annotations

import ast
import itertools
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import promql_parser
import yaml

ROOT = Path(__file__).parent.parent.parent
BOARD = json.loads((ROOT / "cluster" / "grafana.json").read_text())
OWN_WORDS = {
    "sum",
    "max",
    "rate",
    "increase",
    "changes",
    "by",
    "or",
    "label_values",
    "output",
    "stage",
    "instance",
    "GpuIndex",
    "Location",
}


def exported() -> dict[str, set[str]]:
    """By the name that Prometheus sees, the labels of each metric that p2p makes."""
    found = {}
    [module] = (ROOT / "p2p" / "translation").rglob("metering.py")
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Counter":
            name, _, labels = map(ast.literal_eval, node.args)
            found[f"ray_{name}_total"] = set(labels)
    for node in ast.walk(ast.parse((ROOT / "p2p" / "training" / "reporter.py").read_text())):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "_GAUGES":
            found |= {f"ray_p2p_train_{name}": {"output"} for name in ast.literal_eval(node.value)}
    return found


def of_ray() -> set[str]:
    """Names in the dashboards that Ray ships."""
    spec = find_spec("ray")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    return set(re.findall(r"ray_\w+", "".join(path.read_text() for path in folder.glob("*panels.py"))))


def expressions() -> list[str]:
    found = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])]
    return found + [item["query"]["query"] for item in BOARD["templating"]["list"] if item["type"] == "query"]


def unknown(expression: str) -> set[str]:
    """Words of a PromQL expression that are no known metric, label or function."""
    ours = exported()
    names = set(re.findall(r"ray_\w+", expression))
    bad = names - set(ours) - of_ray()
    bare = re.sub(r'"[^"]*"|\[[^]]*\]|ray_\w+|__name__', "", expression)
    bad |= set(re.findall(r"[A-Za-z_]\w*", bare)) - OWN_WORDS
    if "stage" in bare:
        bad |= {name for name in names if "stage" not in ours.get(name, ())}
    return bad


def alerts() -> dict[str, str]:
    documents = yaml.safe_load_all((ROOT / "cluster" / "kuberay" / "monitoring.yaml").read_text())
    (rules,) = [
        document["spec"]["groups"][0]["rules"] for document in documents if document["kind"] == "PrometheusRule"
    ]
    return {rule["alert"]: rule["expr"] for rule in rules}


def test_every_alert_is_about_metrics_that_exist() -> None:
    assert len(alerts()) == 5
    for name, expression in alerts().items():
        promql_parser.parse(expression)
        if "kube_pod" not in expression:
            assert re.search(r"ray_p2p_\w+", expression) and not unknown(expression), name
            assert "by (output)" in expression, "or $labels.output would be empty"


def test_every_expression_uses_metrics_that_exist() -> None:
    assert len(expressions()) > 15
    for expression in expressions():
        if "label_values" not in expression:  # Grafana's own
            promql_parser.parse(re.sub(r"\$__rate_interval|\$\w+", "5m", expression))
        assert re.search(r"ray_\w+", expression) and not unknown(expression), expression
        assert expression.count("(") == expression.count(")")
    assert unknown("sum(rate(ray_p2p_translate_total[5m]))") == {"ray_p2p_translate_total"}
    assert unknown("sum by (stage) (ray_p2p_failed_total)") == {"ray_p2p_failed_total"}
    assert unknown("summ(ray_p2p_failed_total)") == {"summ"}


def test_no_range_is_of_several_metrics() -> None:
    # increase(), rate() and changes() drop the name, and Prometheus refuses two series that then have the same labels.
    several = re.compile(r"\{[^}]*__name__\s*(=~|!~|!=)[^}]*\}\s*\[")
    assert several.search('increase({__name__=~"ray_p2p_translated_total|ray_p2p_failed_total"}[30m])')
    for expression in (*alerts().values(), *expressions()):
        assert not several.search(expression), expression


def test_every_metric_is_shown() -> None:
    assert len(exported()) >= 7
    assert set(exported()) <= set(re.findall(r"ray_\w+", " ".join(expressions())))


def test_panels_lie_side_by_side() -> None:
    panels: list[dict[str, Any]] = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["w"] > 0 and place["h"] > 0
        for cell in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        ):
            assert cell not in taken, panel["title"]
            taken.add(cell)
        if panel["type"] != "row":
            assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]


def test_its_stages_are_those_that_translation_tells_of() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "p2p" / "translation").rglob("*.py"))
    for stage in set(re.findall(r'stage="(\w+)"', " ".join(expressions()))):
        assert f'seconds["{stage}"]' in sources
