"""A dataclass as a command line, and a job as a process: words in, one JSON line and an exit status out."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from p2p.cli import TrueFalse, parse
from p2p.errors import BadInputError, StorageError, TooManyBadInputsError, TrainingStoppedError, UsageError


@dataclass(frozen=True, kw_only=True)
class BakeConfig:
    """Bake something."""

    output: str
    """Where it goes."""
    lambda_l1: float = 100.0
    """Weight of the filling."""
    batch_size: int = 1
    """Cakes at once."""
    label_smoothing: float = 0.0
    """Cream on top, 0..1."""
    dropout: TrueFalse = True
    """Whether crumbs fall."""
    dry_run: bool = False
    """Only say what would be baked."""
    gpu: Literal["auto", "true", "false"] = "auto"
    """Kind of oven."""
    metrics: str | None = None
    """Comma-separated names of judgements."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"--batch-size is {self.batch_size}; give at least 1")
        if not 0 <= self.label_smoothing <= 1:
            raise UsageError(f"--label-smoothing is {self.label_smoothing}; give 0..1")


def write(path: Path, values: dict[str, Any], form: str) -> Path:
    path.write_text(json.dumps(values) if form == "json" else yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path, form: str) -> None:
    file = write(tmp_path / "options", {"output": "o", "batch-size": 4, "lambda_l1": 10, "dry_run": True}, form)
    config = parse(BakeConfig, ["--config", str(file), "--batch-size", "8"])
    assert config == BakeConfig(output="o", batch_size=8, lambda_l1=10.0, dry_run=True)
    assert parse(BakeConfig, ["--no-dry-run", "--batch-size=8", f"--config={file}"]).dry_run is False
    assert parse(BakeConfig, ["--batch-size=8", f"--config={file}"]).batch_size == 8


def test_a_later_file_wins_over_an_earlier_one(tmp_path: Path) -> None:
    first = write(tmp_path / "a", {"output": "a", "batch_size": 2}, "yaml")
    second = write(tmp_path / "b", {"output": "b"}, "yaml")
    config = parse(BakeConfig, ["--config", str(first), "--config", str(second)])
    assert (config.output, config.batch_size) == ("b", 2)


@given(
    output=st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1),
    lambda_l1=st.floats(-1e6, 1e6),
    batch_size=st.integers(1, 10**6),
    dropout=st.booleans(),
    dry_run=st.booleans(),
    gpu=st.sampled_from(["auto", "true", "false"]),
)
def test_a_config_written_to_a_file_is_read_back_as_it_was(tmp_path_factory: Any, **values: Any) -> None:
    file = tmp_path_factory.mktemp("config") / "options.yaml"
    assert parse(BakeConfig, ["--config", str(write(file, values, "yaml"))]) == BakeConfig(**values)


@pytest.mark.parametrize(
    "text",
    [
        "output: o\nbatch-size: 2\nbatch-size: 4\n",
        "batch_size: 2\nbatch-size: 4\n",
        '{"batch-size": 2, "batch-size": 2}',
    ],
)
def test_an_option_named_twice_in_one_config_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match="is named twice; keep one"):
        parse(BakeConfig, ["--config", str(file)])


@pytest.mark.parametrize("date", ["2024-01-31", "2024-13-45", "2024-01-31T10:00:00Z"])
def test_a_folder_may_be_named_for_a_date(tmp_path: Path, date: str) -> None:
    (tmp_path / "options.yaml").write_text(f"output: {date}")
    assert parse(BakeConfig, ["--config", str(tmp_path / "options.yaml")]).output == date


def test_yaml_words_that_mean_booleans_reach_options_that_take_words(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("output: o\ngpu: true\ndropout: no\nlambda-l1: 2e-4\nmetrics: [l1, psnr]\n")
    config = parse(BakeConfig, ["--config", str(file)])
    assert (config.gpu, config.dropout, config.lambda_l1, config.metrics) == ("true", False, 2e-4, "l1,psnr")


@pytest.mark.parametrize("word, value", [("true", True), ("false", False)])
def test_a_true_false_option_takes_its_value_as_a_word(word: str, value: bool) -> None:
    assert parse(BakeConfig, ["--output", "o", "--dropout", word]).dropout is value


MISTAKES = {
    "unknown name in the file": ("batchsize: 3", ["'batchsize'", "batch-size"]),
    "name unlike any option": ("colour: red", ["'colour'", "--help"]),
    "value of the wrong kind": ("batch_size: many", ["batch-size", "many"]),
    "flag that is no boolean": ("dry_run: perhaps", ["--dry-run", "perhaps"]),
    "nested values": ("metrics: {a: 1}", ["--metrics", "dict"]),
    "not a mapping": ("- a\n- b", ["list"]),
    "not YAML": ("a: [", ["not valid YAML"]),
    "not text": ("\xff\xfe", ["options.yaml: not UTF-8 text"]),
    "refused by validation": ("batch_size: 0", ["--batch-size is 0"]),
    "an alias": ("output: &a x\nmetrics: *a", ["line 1: an anchor or alias"]),
    "aliases of aliases": ("".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]\n" for n in range(1, 40)), ["anchor or alias"]),
    "nested in brackets": ("[" * 100_000, ["line 1: nested too deeply"]),
    "nested in braces": ('{"a":' * 100_000, ["line 1: nested too deeply"]),
    "nested by lines": ("".join(" " * n + "a:\n" for n in range(1000)), ["line 11: nested too deeply"]),
    "too large": ("# " + "x" * 2**20, ["more than 1048576 bytes"]),
    "bytes": ("output: !!binary aGVsbG8=", ["line 1: the type tag:yaml.org,2002:binary"]),
    "a set": ("metrics: !!set {a, b}", ["line 1: the type tag:yaml.org,2002:set"]),
    "an object": ("output: !!python/object/apply:os.getcwd []", ["line 1: the type tag:yaml.org,2002:python"]),
    "a date for a number": ("batch_size: 2024-13-45", ["batch-size", "2024-13-45"]),
    "a number without digits": ("batch_size: 0x_", ["not valid YAML"]),
    "a number without end": (f"batch_size: {'9' * 5000}", ["not valid YAML", "4300 digits"]),
    "a number beyond all": ("label_smoothing: 1e400", ["--label-smoothing is inf"]),
    "no number": ("label_smoothing: .nan", ["--label-smoothing is nan"]),
    "a list of mappings": ("metrics: [{a: 1}]", ["--metrics", "dict"]),
    "a list with nothing in it": ("metrics: [l1, null]", ["--metrics", "NoneType"]),
    "a zero byte": ('output: "a\\0b"', ["--output", r"'a\x00b'"]),
    "a terminal's command": ('output: "a\\e[2J"', ["--output", r"'a\x1b[2J'"]),
    "half a character": ('{"output": "a\\ud800"}', ["--output", r"'a\ud800'"]),
}


@pytest.mark.parametrize("text, said", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_file_is_told_without_traceback_before_work_starts(
    run_cli: Any, tmp_path: Path, text: str, said: list[str]
) -> None:
    file = tmp_path / "options.yaml"
    file.write_bytes(text.encode("latin-1"))
    outcome = run_cli(BakeConfig, pytest.fail, "--output", "o", "--config", file)
    assert outcome.status == 2
    assert outcome.summary is None
    assert "Traceback" not in outcome.stderr
    for words in said:
        assert words in outcome.stderr


@pytest.mark.parametrize(
    "words, said",
    [
        (["--output", "o", "--batch-sise", "3"], "--batch-size"),
        (["--output", "o", "--gpu", "maybe"], "maybe"),
        (["--output", "o", "--dropout", "perhaps"], "perhaps"),
        (["--output", "o", "--batch-size", "0"], "--batch-size is 0"),
        (["--output", " "], "--output: must not be empty"),
        (["--output", "o", "--config"], "--config needs a file"),
        (["--output", "o", "--config", "/no/such/file"], "/no/such/file"),
        ([], "output"),
    ],
)
def test_a_mistake_on_the_command_line_exits_2(run_cli: Any, words: list[str], said: str) -> None:
    outcome = run_cli(BakeConfig, pytest.fail, *words)
    assert (outcome.status, outcome.summary) == (2, None)
    assert said in outcome.stderr + outcome.stdout
    assert "Traceback" not in outcome.stderr


def test_help_goes_to_stdout_and_says_units_and_defaults(run_cli: Any) -> None:
    outcome = run_cli(BakeConfig, pytest.fail, "--help")
    assert outcome.status == 0
    for words in ("--lambda-l1", "Weight of the filling", "100", "--config FILE"):
        assert words in outcome.stdout


_NOISY = """
import os, subprocess, sys
from dataclasses import dataclass
from pathlib import Path
from p2p.cli import run_job

@dataclass(frozen=True, kw_only=True)
class Config:
    cakes: int = 1

def job(config):
    print("from Python")
    os.write(1, b"from a C library\\n")
    subprocess.run(["echo", "from a child"], check=True)
    return {"baked": config.cakes, "where": Path("cellar"), "loss": float("nan")}

sys.exit(run_job(Config, job))
"""


def test_the_summary_is_the_only_line_on_stdout_whatever_libraries_print() -> None:
    done = subprocess.run([sys.executable, "-c", _NOISY], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout == '{"baked": 1, "where": "cellar", "loss": null}\n'
    assert sorted(done.stderr.splitlines()) == ["from Python", "from a C library", "from a child"]


@pytest.mark.parametrize(
    "error, status",
    [
        (UsageError("--output is full"), 2),
        (StorageError("the cellar is locked"), 1),
        (BadInputError("Rotten", "the eggs are off"), 1),
    ],
)
def test_an_error_with_a_name_is_one_line_and_its_exit_status(run_cli: Any, error: Exception, status: int) -> None:
    def fails(config: BakeConfig) -> dict[str, Any]:
        raise error

    outcome = run_cli(BakeConfig, fails, "--output", "o")
    assert (outcome.status, outcome.summary) == (status, None)
    assert outcome.stderr == f"error: {error}\n"


def test_too_many_bad_inputs_still_print_the_summary_and_exit_3(run_cli: Any) -> None:
    def fails(config: BakeConfig) -> dict[str, Any]:
        raise TooManyBadInputsError("2 of 3 were bad", {"bad": 2})

    outcome = run_cli(BakeConfig, fails, "--output", "o")
    assert (outcome.status, outcome.summary) == (3, {"bad": 2})
    assert "2 of 3 were bad" in outcome.stderr


def test_a_job_that_fails_with_a_summary_still_prints_it(run_cli: Any) -> None:
    def fails(config: BakeConfig) -> dict[str, Any]:
        error = TrainingStoppedError("d_real no longer finite", {"finding": "…"})
        error.summary = {"epochs": 3}
        raise error

    outcome = run_cli(BakeConfig, fails, "--output", "o")
    assert (outcome.status, outcome.summary) == (1, {"epochs": 3})
    assert outcome.stderr == "error: d_real no longer finite\n"


@pytest.mark.parametrize(
    "error, status",
    [
        (UsageError("--output is full"), 2),
        (TooManyBadInputsError("2 of 3 were bad", {"bad": 2}), 3),
        (TrainingStoppedError("d_real no longer finite", {"finding": "…"}), 1),
        (TrainingStoppedError("workers were lost 4 times"), None),
        (StorageError("the cellar is locked"), None),
        (KeyError("heat"), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_a_failure_that_would_come_again_can_be_kept_from_a_scheduler_that_retries_all(
    run_cli: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int | None
) -> None:
    def fails(config: BakeConfig) -> dict[str, Any]:
        raise pickle.loads(pickle.dumps(error))  # as from a worker

    monkeypatch.setenv("P2P_FINAL_IS_SUCCESS", "1")
    outcome = run_cli(BakeConfig, fails, "--output", "o")
    assert outcome.status == (1 if status is None else 0)
    last = outcome.stderr.splitlines()[-1]
    assert last.startswith(f"final: exit status {status}, ") == (status is not None), outcome.stderr
    assert run_cli(BakeConfig, fails, "--outputs", "o").status == 0  # no such option
    monkeypatch.delenv("P2P_FINAL_IS_SUCCESS")
    assert run_cli(BakeConfig, fails, "--output", "o").status == (status or 1)
    assert run_cli(BakeConfig, fails, "--outputs", "o").status == 2


def test_a_defect_shows_its_traceback_and_exits_1(run_cli: Any) -> None:
    def fails(config: BakeConfig) -> dict[str, Any]:
        return {"oven": {}["heat"]}

    outcome = run_cli(BakeConfig, fails, "--output", "o")
    assert (outcome.status, outcome.summary) == (1, None)
    assert "Traceback" in outcome.stderr
    assert "KeyError: 'heat'" in outcome.stderr


def test_too_little_memory_is_no_defect(run_cli: Any) -> None:
    def fails(config: BakeConfig) -> dict[str, Any]:
        try:
            raise MemoryError
        except MemoryError as error:
            raise RuntimeError("a task of Ray's failed") from error

    outcome = run_cli(BakeConfig, fails, "--output", "o")
    assert (outcome.status, outcome.summary) == (1, None)
    assert "error: out of memory" in outcome.stderr and "Traceback" not in outcome.stderr


def test_secrets_of_the_environment_reach_neither_errors_nor_logs_nor_the_summary(run_cli: Any) -> None:
    import logging

    secret = os.environ["AWS_SECRET_ACCESS_KEY"]

    def leaks(config: BakeConfig) -> dict[str, Any]:
        logging.getLogger("p2p").info("using %s", secret)
        return {"source": f"s3://{secret}@bucket/key"}

    def fails(config: BakeConfig) -> dict[str, Any]:
        raise RuntimeError(f"cannot sign with {secret}")

    for job in (leaks, fails):
        outcome = run_cli(BakeConfig, job, "--output", "o")
        assert secret not in outcome.stdout + outcome.stderr
        assert "***" in outcome.stdout + outcome.stderr


def test_a_summary_stays_json_where_a_secret_is_taken_out_of_it(run_cli: Any) -> None:
    def job(config: BakeConfig) -> dict[str, Any]:
        return {"source": 'https://h/k?token=ab"cd', "names": ["https://u:ab@h", {"n": 1}]}

    outcome = run_cli(BakeConfig, job, "--output", "o")
    assert outcome.summary == {"source": 'https://h/k?token=***"cd', "names": ["https://***@h", {"n": 1}]}


EVIL = "a\x1b]0;owned\x07\x1b[2J\nerror: all is lost\u202e.png"
QUOTED = r"a\x1b]0;owned\x07\x1b[2J\nerror: all is lost\u202e.png"


def test_names_reach_the_terminal_as_text(run_cli: Any) -> None:
    import logging

    def job(config: BakeConfig) -> dict[str, Any]:
        logging.getLogger("p2p").warning("%s is odd, Zürich 中 👍 is not", EVIL)
        if config.dry_run:
            raise TooManyBadInputsError(f"{EVIL}: bad", {})
        raise StorageError(f"{EVIL}: nothing is there")

    outcome = run_cli(BakeConfig, job, "--output", "o")
    told, error = outcome.stderr.splitlines()
    assert told.endswith(f"{QUOTED} is odd, Zürich 中 👍 is not")
    assert error == f"error: {QUOTED}: nothing is there"
    assert f"{QUOTED}: bad\n" in run_cli(BakeConfig, job, "--output", "o", "--dry-run").stderr


def test_a_traceback_keeps_its_lines_and_commands_no_terminal(run_cli: Any) -> None:
    def job(config: BakeConfig) -> dict[str, Any]:
        raise RuntimeError(EVIL)

    outcome = run_cli(BakeConfig, job, "--output", "o")
    lines = outcome.stderr.splitlines()
    assert "Traceback (most recent call last):" in lines and len(lines) > 5
    assert not {"\x1b", "\x07", "\u202e"} & set(outcome.stderr)


_INTERRUPTED = """
import sys
from dataclasses import dataclass
from p2p.cli import run_job

@dataclass(frozen=True, kw_only=True)
class Config:
    pass

def job(config):
    sys.stderr.write("working\\n")
    sys.stderr.flush()
    sys.stdin.read()

sys.exit(run_job(Config, job))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_control_c_and_a_schedulers_sigterm_are_one_line_and_exit_status_1(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore the signal, and all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "working\n"
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (1, "")
    assert len(stderr.splitlines()) == 1
    assert "interrupted" in stderr
