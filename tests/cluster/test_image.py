"""The image's recipe: whom it runs as, that its packages are the pinned ones, and that it gets the files it wants."""

from __future__ import annotations

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import yaml
from kustomize import containers, render
from manifests import KUBERAY, OVERLAYS, ROOT


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
    """Checked by hash, but for PyTorch on an image for CPUs: that lies where hashes are others."""
    tools, packages, code = [words for words in arguments("RUN") if "pip install" in words]
    assert "python -m pip install --require-hashes -r uv.txt" in tools
    assert "cuda) uv pip install --require-hashes -r pyproject.toml ${PACKAGES} -c constraints.txt" in packages
    assert "cpu) awk" in packages and "--torch-backend cpu -r pyproject.toml ${PACKAGES} -c cpu.txt" in packages
    assert "--no-deps --no-build-isolation --target /opt/p2p/lib ." in code
    assert "REQUIREMENTS=constraints.txt" in arguments("ARG")
    (base,) = [words.removeprefix("BASE=") for words in arguments("ARG") if words.startswith("BASE=")]
    version = re.fullmatch(r"python:(3\.\d+)-slim-\w+", base)
    assert version and version[1] in ("3.11", "3.12")
    assert arguments("FROM") == ["${BASE} AS packages", "packages AS code", "${BASE}"]


def test_parts_of_the_pins_are_cut_out_whole(tmp_path: Path) -> None:
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    text = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    for program, place in re.findall(r"awk ('[^']+') constraints.txt (>\w+.txt)", text):
        subprocess.run(["bash", "-c", f"awk {program} constraints.txt {place}"], cwd=tmp_path, check=True)
    pins, cpu = (hashes_of(tmp_path / name) for name in ("constraints.txt", "cpu.txt"))
    uv = {name: hashes for name, hashes in pins.items() if name.startswith("uv==")}
    assert hashes_of(tmp_path / "uv.txt") == uv and len(uv) == 1
    torch = {name for name in pins if re.match(r"torch(vision)?==", name)}
    assert {name for name in pins if pins[name] != cpu[name]} == torch and len(torch) == 2
    assert not any(cpu[name] for name in torch)
    assert not (tmp_path / "cpu.txt").read_text().rstrip().endswith("\\")


def hashes_of(pins: Path) -> dict[str, int]:
    """By name and version, how many hashes; a name without hashes does not go on in the next line."""
    found: dict[str, int] = {}
    name = ""
    for line in pins.read_text().splitlines():
        if line.startswith(" "):
            found[name] += 1
        else:
            name, continues = line.removesuffix("\\").split(" ")[0], line.endswith("\\")
            found[name] = 0
            assert continues or name.startswith("torch")
    return found


def test_a_change_of_code_is_a_push_of_megabytes() -> None:
    """The packages are a layer of their own, made of nothing that changes with p2p; what does comes last."""
    order = [(step, words) for step, words in steps() if step in ("FROM", "COPY")]
    stages = [number for number, (step, _) in enumerate(order) if step == "FROM"]
    packages = [words for step, words in order[: stages[1]] if step == "COPY"]
    assert packages == ["${REQUIREMENTS} constraints.txt", "pyproject.toml ./"]
    assert [words for _, words in order[stages[2] + 1 :]] == [
        "--from=packages /opt/venv /opt/venv",
        "--from=code /opt/p2p/lib lib",
        "jobs jobs",
    ]
    assert arguments("WORKDIR")[-1] + "/lib" == "/opt/p2p/lib" and "echo /opt/p2p/lib >" in " ".join(arguments("RUN"))


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


def test_its_tag_is_to_be_filled_in() -> None:
    """A tag that is used again leaves nodes with what they have pulled under it."""
    names = {container["image"] for overlay in OVERLAYS for container in containers(render(overlay))}
    names |= {
        yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())["docker"]["image"] for name in ("aws", "gcp")
    }
    assert names == {"REGISTRY/p2p:TAG"}
