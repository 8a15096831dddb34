"""The image's recipe: whom it runs as, that its packages are the pinned ones, and that it gets the files it wants."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import yaml
from kustomize import containers, render

ROOT = Path(__file__).parent.parent.parent
KUBERAY = ROOT / "cluster" / "kuberay"


def steps() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile in order, continued lines joined."""
    text = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", text)).splitlines()
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines if line.strip()]


def arguments(name: str) -> list[str]:
    return [words for step, words in steps() if step == name]


def test_it_runs_as_the_user_that_manifests_and_launcher_expect() -> None:
    user = arguments("USER")[-1]
    assert user == "1000:1000"
    assert any("useradd --uid 1000 --create-home" in words for words in arguments("RUN"))
    pods = [manifest["spec"] for manifest in render(KUBERAY / "overlays" / "cpu" / "cluster")]
    assert pods[0]["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"] == 1000


def test_its_packages_are_the_pinned_ones() -> None:
    installs = [words for words in arguments("RUN") if "pip install" in words]
    assert len(installs) == 2
    assert "--require-hashes -r requirements.txt" in installs[0]
    assert "--no-deps --no-build-isolation ." in installs[1]
    assert "REQUIREMENTS=constraints.txt" in arguments("ARG")
    (base,) = [words.removeprefix("BASE=") for words in arguments("ARG") if words.startswith("BASE=")]
    version = re.fullmatch(r"python:(3\.\d+)-slim-\w+", base)
    assert version and version[1] in ("3.11", "3.12")
    assert set(arguments("FROM")) == {"${BASE} AS build", "${BASE}"}


def test_jobs_lie_where_manifests_look_for_them() -> None:
    assert arguments("WORKDIR")[-1] == "/opt/p2p" and "jobs jobs" in arguments("COPY")
    for part in ("train", "translate"):
        for kind in ("cpu", "gpu"):
            (job,) = render(KUBERAY / "overlays" / kind / part)
            assert (ROOT / job["spec"]["entrypoint"].split()[1].removeprefix("/opt/p2p/")).is_file()


def test_every_file_it_copies_exists_and_reaches_the_build() -> None:
    sources = {
        name.replace("${REQUIREMENTS}", "constraints.txt")
        for words in arguments("COPY")
        if not words.startswith("--from")
        for name in words.split()[:-1]
    }
    assert sources == {"constraints.txt", "pyproject.toml", "README.md", "LICENSE", "p2p", "jobs"}
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    for name in sources:
        assert (ROOT / name).exists() and any(fnmatch(name, rule) for rule in kept), name
    for rule in kept:  # and nothing else
        assert any(fnmatch(name, rule) for name in sources), rule


def test_its_name_has_the_version_of_p2p() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    names = {
        container["image"]
        for overlay in (KUBERAY / "overlays").glob("*/*")
        for container in containers(render(overlay))
    }
    names |= {
        yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())["docker"]["image"] for name in ("aws", "gcp")
    }
    assert names == {f"REGISTRY/p2p:{version}"}
