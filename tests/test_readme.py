"""The pages for people: what they name exists, and their commands are commands."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from p2p.benchmark import BenchmarkConfig
from p2p.cli import parse
from p2p.comparison import CompareConfig
from p2p.evaluation import EvaluateConfig
from p2p.preparation import PrepareConfig
from p2p.storage.formats import FORMATS
from p2p.storage.pixels import MODES, REFUSED_MODES
from p2p.storage.tiff import COMPRESSIONS
from p2p.training import TrainConfig
from p2p.translation import TranslateConfig
from p2p.translation.status import StatusConfig

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "jobs/README.md",
    "p2p/README.md",
    "p2p/benchmark/README.md",
    "cluster/README.md",
    "cluster/RUNBOOK.md",
    "cluster/SECURITY.md",
]
MAX_LINES = 150
CONFIGS: dict[str, type] = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "translate": TranslateConfig,
    "status": StatusConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "benchmark": BenchmarkConfig,
}
OF_OTHER_PROGRAMS = {"--help", "--config", "--working-dir", "--runtime-env-json"}


@cache
def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code_of(page: str) -> str:
    """What is in the blocks of a page, continued lines joined."""
    return "\n".join(re.findall(r"(?ms)^```\w*\n(.*?)^```", read(page))).replace("\\\n", " ")


def prose_of(page: str) -> str:
    return re.sub(r"(?ms)^```\w*\n.*?^```", "", read(page))


def commands_of(page: str) -> list[str]:
    """The jobs that a page starts, without those whose options it leaves out."""
    return re.findall(r"(?m)python (jobs/\w+\.py [^…\n]+)$", re.sub(r" +#.*$", "", code_of(page), flags=re.MULTILINE))


def options_of(job: str) -> set[str]:
    fields = CONFIGS[job].__dataclass_fields__
    return {"--" + name.replace("_", "-") for name in fields if job != "status" and name != "evaluations"}


def test_every_format_and_mode_of_images_is_in_its_table() -> None:
    page = read("p2p/README.md")
    for format in FORMATS:
        needs = f"`pip install {format.package}`" if format.package else ""
        assert f"| {format.name} | {' '.join(f'`{ending}`' for ending in format.endings)} | {needs} |" in page
    for name, mode in MODES.items():
        assert f"| `{name}` | {mode.meaning} |" in page
    for name, what in REFUSED_MODES.items():
        assert f"| `{name}` | {what}: refused |" in page
    assert ", ".join(dict.fromkeys(COMPRESSIONS.values())) in page


def test_the_first_page_is_one_that_a_newcomer_finishes() -> None:
    assert len(read("README.md").splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    "page, command", [(page, command) for page in PAGES for command in commands_of(page)], ids=lambda text: text[:60]
)
def test_every_command_is_one_that_its_job_understands(page: str, command: str) -> None:
    job, words = re.findall(r"^jobs/(\w+)\.py (.*)", command)[0]
    assert parse(CONFIGS[job], shlex.split(words))


def test_the_reference_has_an_example_of_every_job() -> None:
    assert {re.findall(r"jobs/(\w+)\.py", command)[0] for command in commands_of("jobs/README.md")} == set(CONFIGS)


def sections_of_the_reference() -> dict[str, str]:
    _, *parts = re.split(r"(?m)^## (\w[^\n]*)\n", read("jobs/README.md"))
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("job", CONFIGS)
def test_the_reference_names_every_option_of_a_job_in_its_table(job: str) -> None:
    rows = re.findall(r"(?m)^\| (.+?) \| .+ \|$", sections_of_the_reference()[job])
    named = [option for row in rows for option in re.findall(r"`(--[a-z0-9-]+)`", row)]
    assert sorted(named) == sorted(options_of(job))


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_is_named_exists(page: str) -> None:
    known = {option for job in CONFIGS for option in options_of(job)} | OF_OTHER_PROGRAMS
    named = set(re.findall(r"`(--[a-z][a-z0-9-]*)", prose_of(page)))
    assert named <= known, named - known


def anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", read(page)):
        path, _, section = link.partition("#")
        if path.startswith("https://"):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if section:
            assert section in {anchor(title) for title in re.findall(r"(?m)^#+ (.+)$", target.read_text())}, link


PATH = r"`((?:[\w.-]+/)+(?:[\w-]+\.(?:py|yaml|sh|md))?)`"
OF_OUTPUTS = re.compile(
    r"(data|images|ledger|manifest|weights|work|previews|checkpoints|samples|tensorboard|errors|\.features|train|val|test)/"
)


@pytest.mark.parametrize("page", [page for page in PAGES if "cluster" not in page])  # which have their own test
def test_every_path_that_is_named_exists(page: str) -> None:
    """Relative to the project or to the page's own folder; what jobs write apart."""
    named = re.findall(PATH, prose_of(page))
    if page == "jobs/README.md":
        named = [path for path in named if not OF_OUTPUTS.match(path)]
    assert named
    for path in named:
        assert (ROOT / path).exists() or (ROOT / page).parent.joinpath(path).exists(), path


STEPS = re.findall(r"(?m)^\| (.+?) \| `([\w/]+\.py)` \| `(\w+)` \|$", read("p2p/README.md"))
ASKED_FOR = (
    "a pair is cropped",
    "a checkpoint becomes the best",
    "an image is recorded as failed",
    "a tile's border is blended",
    "the learning rate falls",
)


@pytest.mark.parametrize("step, path, name", STEPS, ids=lambda text: text.rsplit("/")[-1])
def test_every_step_of_the_two_journeys_is_where_it_is_said_to_be(step: str, path: str, name: str) -> None:
    source = (ROOT / "p2p" / path).read_text(encoding="utf-8")
    assert re.search(rf"(?m)^\s*(def|class) {name}\b", source), f"{step}: {name} is not in {path}"


@pytest.mark.parametrize("what", ASKED_FOR)
def test_a_new_reader_finds_the_file_in_which_it_happens(what: str) -> None:
    assert len([step for step, _, _ in STEPS if f"**{what}**" in step]) == 1


def test_the_architecture_names_every_room() -> None:
    rooms = {path.parent.name for path in (ROOT / "p2p").glob("*/__init__.py")}
    rooms |= {f"translation/{path.parent.name}" for path in (ROOT / "p2p" / "translation").glob("*/__init__.py")}
    assert set(re.findall(r"(?m)^\| `([\w/]+)/` \|", read("p2p/README.md"))) == rooms
