"""A frozen dataclass becomes a command line; a job becomes a process with one last line and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import inspect
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from p2p.documents import to_json
from p2p.errors import ConfigError, P2PError, UsageError, quote_controls, redact, root_cause

Config = TypeVar("Config")
Summary = Mapping[str, Any]

_MAX_CONFIG_BYTES = 2**20
_MAX_CONFIG_DEPTH = 10

TrueFalse = Annotated[
    bool,
    tyro.conf.FlagConversionOff,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="true|false",
        instance_from_str=lambda words: words[0] == "true",
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value).lower()],
        choices=("true", "false"),
    ),
]
"""A boolean option that takes its value as a word: `--dropout false`. Plain `bool` fields are flags."""


def read_plain_yaml(option: str, path: str) -> dict[str, Any]:
    """The mapping in a local file of YAML or JSON that an option names; empty for an empty file.

    Values are plain: dates stay text. Raises UsageError, which begins with `option` (`--config`) and the path, for
    anything else, such as a type, an alias, or a name that is given twice.
    """
    import yaml

    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    if len(data) > _MAX_CONFIG_BYTES:
        raise UsageError(f"{option} {path}: more than {_MAX_CONFIG_BYTES} bytes, so no file of options")
    try:
        _require_plain_values(f"{option} {path}", text)
        loader = yaml.SafeLoader(text)  # JSON is a subset of YAML
        loader.yaml_implicit_resolvers = _without_dates(loader.yaml_implicit_resolvers)
        written = loader.get_single_node()
        values = None if written is None else loader.construct_document(written)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter two of numbers such as 0x_
        raise UsageError(f"{option} {path}: not valid YAML or JSON: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not (isinstance(values, dict) and isinstance(written, yaml.MappingNode)):
        raise UsageError(f"{option} {path}: expected `option: value` lines, found a {type(values).__name__}")
    _refuse_repeated(f"{option} {path}", written)
    return {str(name): value for name, value in values.items()}


def _require_plain_values(where: str, text: str) -> None:
    """Raise UsageError, before anything is built of it, for YAML by which a short text can become a large value."""
    import yaml

    depth = 0
    event: Any
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        place = f"{where}: line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UsageError(f"{place}: an anchor or alias; write the value itself")
        if getattr(event, "tag", None):
            raise UsageError(f"{place}: the type {event.tag}; options take plain values")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_CONFIG_DEPTH:
            raise UsageError(f"{place}: nested too deeply; options take plain values")


def _without_dates(resolvers: Mapping[str, Any]) -> dict[str, Any]:
    """YAML's rules for types but for that of dates: a folder may be named for one."""
    date = "tag:yaml.org,2002:timestamp"
    return {first: [rule for rule in rules if rule[0] != date] for first, rules in resolvers.items()}


def _refuse_repeated(where: str, written: Any) -> None:
    """YAML itself lets the last of two lines win, and a dash or an underscore makes no other option."""
    seen: set[str] = set()
    for key, value in written.value:
        name = _field_name(str(key.value))
        if name in seen:
            raise UsageError(f"{where}: {str(key.value)!r} is named twice; keep one of the lines")
        seen.add(name)
        if isinstance(value, type(written)):
            _refuse_repeated(where, value)


def _field_name(written: str) -> str:
    return written.lstrip("-").replace("-", "_")


def _words_of(name: str, value: Any, is_flag: bool) -> list[str]:
    option = "--" + name.replace("_", "-")
    if is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{option} in the config file is {value!r}; use true or false")
        return [option if value else option.replace("--", "--no-", 1)]
    values = value if isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, (str, int, float)):
            raise UsageError(f"{option} in the config file is a {type(one).__name__}; options take plain values")
    word = ",".join(str(one).lower() if isinstance(one, bool) else str(one) for one in values)
    if quote_controls(word) != word:
        raise UsageError(f"{option} in the config file is {word!r}, with characters that no option takes")
    # One word, so that a value that starts with a dash is not taken for an option.
    return [f"{option}={word}"]


def _config_file_words(config_class: type, path: str) -> list[str]:
    """Turn the file's `name: value` pairs into command-line words, so that one parser judges both."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    words: list[str] = []
    for written, value in read_plain_yaml("--config", path).items():
        name = _field_name(written)
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0].replace('_', '-')}?" if near else "--help lists the options"
            raise UsageError(f"--config {path}: unknown option {written!r}; {hint}")
        if value is not None:
            words += _words_of(name, value, is_flag=fields[name].type in ("bool", bool))
    return words


def _split_config_option(words: Sequence[str]) -> tuple[list[str], list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    try:
        found, rest = parser.parse_known_args(words)
    except argparse.ArgumentError:
        raise UsageError("--config needs a file") from None
    return found.config, rest


def parse(config_class: type[Config], words: Sequence[str]) -> Config:
    """Build `config_class` from `--config` files (in order) and then the command line, which wins.

    Raises UsageError for what a config file or a validation gets wrong; exits with status 2 for what tyro finds.
    """
    paths, rest = _split_config_option(words)
    from_files = [word for path in paths for word in _config_file_words(config_class, path)]
    description = inspect.cleandoc(config_class.__doc__ or "")
    description += "\n\n--config FILE reads options from YAML or JSON, same names; the command line wins."
    config: Config = tyro.cli(config_class, args=[*from_files, *rest], description=description)
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    for name, value in vars(config).items():
        if isinstance(value, str) and not value.strip() and value != defaults.get(name):
            # A shell makes this of a variable that is not set; as an address it would mean the current folder.
            raise UsageError(f"--{name.replace('_', '-')}: must not be empty")
    return config


def log_to_stderr(job: str = "") -> None:
    """Let the loggers of p2p write to stderr, each line with `job` where several jobs share a place for their logs."""
    handler = _StderrHandler()
    handler.setFormatter(
        _Formatter(" ".join(filter(None, ("%(asctime)s", job.replace("%", "%%"), "%(message)s"))), "%H:%M:%S")
    )
    logger = logging.getLogger("p2p")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class _StderrHandler(logging.Handler):
    """Writes to what sys.stderr is at that moment: a progress bar puts itself there, to keep lines above it whole."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)  # noqa: T201
        except Exception:
            self.handleError(record)


class _Formatter(logging.Formatter):
    """Neither secrets nor what a terminal would obey: a message may quote a file's name or a server's answer."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return quote_controls(redact(super().formatMessage(record)))

    def format(self, record: logging.LogRecord) -> str:
        return quote_controls(redact(super().format(record)), keep="\n\t")  # those of a traceback below the message


@contextlib.contextmanager
def _stdout_for_the_summary_only() -> Iterator[int]:
    """Send whatever libraries print to stderr; yield a descriptor that still reaches the real stdout."""
    sys.stdout.flush()
    real = os.dup(1)
    try:
        os.dup2(2, 1)
        yield real
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)


def _finish(summary: Summary, stdout: int) -> None:
    os.write(stdout, (json.dumps(_redacted(json.loads(to_json(summary)))) + "\n").encode())


def _redacted(document: Any) -> Any:
    """Not in the text of the document: an escaped quote in a value that is taken out would leave no JSON."""
    if isinstance(document, dict):
        return {redact(name): _redacted(value) for name, value in document.items()}
    if isinstance(document, list):
        return [_redacted(value) for value in document]
    return redact(document) if isinstance(document, str) else document


def run_job(config_class: type[Config], job: Callable[[Config], Summary], words: Sequence[str] | None = None) -> int:
    """Parse, run `job`, print its summary as the last stdout line. Returns the exit status.

    0 done; 1 failed or interrupted, with a summary where it got so far; 2 wrong usage, found before work started; 3
    done, but not good enough.
    A user's mistake is one line on stderr; only a defect of p2p itself shows a traceback.

    A scheduler may know of no exit status but 0 and start anew what ends with another. With P2P_FINAL_IS_SUCCESS=1 in
    the environment the status is 0 also where that would be in vain, and the last line of stderr says which it was.
    """
    log_to_stderr()
    with _termination_as_interrupt():
        status, is_final = _run_job(config_class, job, sys.argv[1:] if words is None else words)
    if is_final and os.environ.get("P2P_FINAL_IS_SUCCESS") == "1":
        sys.stderr.write(f"final: exit status {status}, given as 0 (P2P_FINAL_IS_SUCCESS): trying again is in vain\n")
        return 0
    return status


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM, by which schedulers end jobs, is answered inside as Control-C is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_job(config_class: type[Config], job: Callable[[Config], Summary], words: Sequence[str]) -> tuple[int, bool]:
    """Returns the exit status, and whether the job failed and would fail again."""
    log = logging.getLogger("p2p")
    try:
        try:
            config = parse(config_class, words)
        except SystemExit as stop:  # tyro has printed its help or its complaint
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            return status, status != 0
        with _stdout_for_the_summary_only() as stdout:
            try:
                _finish(job(config), stdout)
            except Exception as error:
                cause = root_cause(error)
                if isinstance(cause, P2PError) and cause.summary is not None:
                    _finish(cause.summary, stdout)
                raise
        return 0, False
    except (KeyboardInterrupt, SystemExit):  # Ray answers SIGTERM by the latter while it starts
        log.error("interrupted; the same command does what is missing")
        return 1, False
    except Exception as error:  # the process border
        cause = root_cause(error)
        if not isinstance(cause, P2PError):
            log.exception("p2p failed unexpectedly; this is a defect of p2p or of the cluster, not of your options")
            return 1, False
        message = str(cause)
        if isinstance(cause, ConfigError):
            message = f"--{cause.field.replace('_', '-')} {cause.problem}"
        sys.stderr.write(f"error: {quote_controls(redact(message))}\n")
        return cause.exit_status, cause.is_final
