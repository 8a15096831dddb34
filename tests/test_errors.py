"""The exception tree, its way through pickles, and what redaction takes out and leaves."""

from __future__ import annotations

import pickle

import pytest

from p2p import errors
from p2p.errors import (
    BadInputError,
    ConfigError,
    NotGoodEnoughError,
    OutputInUseError,
    P2PError,
    TooManyBadInputsError,
    UsageError,
    check_bad_fraction,
    quote_controls,
    redact,
)

TREE = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, P2PError)]


def test_exit_statuses_are_those_of_the_interface() -> None:
    assert {kind.__name__: kind.exit_status for kind in TREE if kind.exit_status != 1} == {
        "UsageError": 2,
        "ConfigError": 2,
        "OutputInUseError": 2,
        "NotGoodEnoughError": 3,
        "TooManyBadInputsError": 3,
    }


@pytest.mark.parametrize("kind", TREE)
def test_every_error_survives_the_pickle_that_brings_it_from_a_worker(kind: type[P2PError]) -> None:
    extra = {BadInputError: ("Kind", "words"), ConfigError: ("words", ""), OutputInUseError: ("words", "")}
    extra |= dict.fromkeys((NotGoodEnoughError, TooManyBadInputsError), ("words", {"bad": 1}))
    error = kind(*extra.get(kind, ("words",)))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy).strip(), vars(copy)) == (kind, "words", vars(error))


@pytest.mark.parametrize(
    "text, hidden, kept",
    [
        ("s3://user:pa55word@bucket/key", "pa55word", "bucket/key"),
        ("https://h/k?X-Amz-Signature=abcdef&X-Amz-Credential=AKIA1&part=7", "abcdef", "part=7"),
        ("https://h/k?X-Amz-Security-Token=tokentoken", "tokentoken", "https://h/k"),
        ("https://account.blob/k?sv=2024&sig=c2lnbmF0dXJl", "c2lnbmF0dXJl", "sv=2024"),
        ("https://h/k?token=deadbeef'", "deadbeef", "https://h/k"),
        ("gs://h/k?X-Goog-Signature=feed", "feed", "gs://h/k"),
        ("https://h/k?page=3&access_token=hush", "hush", "page=3"),
        ("https://h/k?API_KEY=hush&page=3", "hush", "page=3"),
        ("https://h/k?key=hush", "hush", "https://h/k"),
        ("https://h/k?sas_token=hush", "hush", "https://h/k"),
        ("https://h/k?jwt=hush", "hush", "https://h/k"),
        ("https://h/k?auth=hush", "hush", "https://h/k"),
        ("https://h/k?Authorization=hush", "hush", "https://h/k"),
        ("https://h/k?password=it's-hush", "hush", "https://h/k"),
        ("https://h/k?pwd=hush", "hush", "https://h/k"),
        ("https://h/k?hdnts=exp=1~acl=/*~hmac=hush", "hush", "https://h/k"),
        ("https://h/k?Policy=hush&Key-Pair-Id=hush&page=3", "hush", "page=3"),
        ("https://h/k?%74ok%65n=hush", "hush", "https://h/k"),
        ("https://h/k?page=3;token=hush", "hush", "page=3"),
        ("https://h/k;token=hush?page=3", "hush", "https://h/k"),
        ("https://h/k#id_token=hush", "hush", "https://h/k"),
        ("https://h/k?token=hu;sh/hush?hush#hush", "hush", "https://h/k"),
        ("https://h/k?src=https%3A%2F%2Fo%2Fk%3FX-Amz-Signature%3Dhush&page=3", "hush", "page=3"),
        ("https://h/k?src=https%3A%2F%2Fu%3Ahush%40o&page=3", "hush", "page=3"),
        ("https://u:p@hush@h/k", "hush", "h/k"),
        ("https://u:p@hush@h?page=3", "hush", "page=3"),
        ("https://hush@h/k@2", "hush", "h/k@2"),
    ],
)
def test_credentials_in_addresses_are_taken_out_and_the_rest_stays(text: str, hidden: str, kept: str) -> None:
    for shown in (redact(text), str(UsageError(f"--source {text}: refused"))):
        assert hidden not in shown
        assert kept in shown


def test_keys_of_the_environment_are_taken_out_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a/long+token==")
    assert redact("header: a/long+token==;") == "header: ***;"


@pytest.mark.parametrize(
    "name, is_secret",
    [
        ("RAY_AUTH_TOKEN", True),
        ("AZURE_CLIENT_SECRET", True),
        ("AZURE_STORAGE_CONNECTION_STRING", True),
        ("REDIS_PASSWORD", True),
        ("WANDB_API_KEY", True),
        ("AWS_ACCESS_KEY_ID", True),
        ("RAY_AUTH_TOKEN_PATH", False),
        ("AWS_ENDPOINT_URL", False),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", False),
        ("GOOGLE_APPLICATION_CREDENTIALS", False),
        ("SSH_AUTH_SOCK", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("KEYBOARD", False),
        ("SORT_KEY", False),
    ],
)
def test_which_variables_hold_secrets_is_told_by_their_names(
    monkeypatch: pytest.MonkeyPatch, name: str, is_secret: bool
) -> None:
    monkeypatch.setenv(name, "something-of-it")
    assert ("something" not in redact("a something-of-it b")) is is_secret


def test_a_secret_that_begins_like_a_shorter_one_is_taken_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdef")
    monkeypatch.setenv("B_TOKEN", "abcdef-ghijkl")
    assert redact("abcdef abcdef-ghijkl") == "*** ***"


def test_an_empty_or_tiny_variable_does_not_blank_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a")
    assert redact("a banana") == "a banana"


@pytest.mark.parametrize(
    "plain",
    [
        "s3://bucket/a@b/c.png",
        "s3://bucket/keys/monkey.png",
        "s3://bucket/key=5/token=6/x.png",
        "corpus.tar#sub/key=5/x.png",
        "https://host/a?page=3",
        "https://h/x?size=3&keyword=cat&author=me&design=2",
        "https://h/x?at=a@b",
        "https://h/x?token=",
        "mail me@home",
        "a?b=c&d=e",
        "C:/x?sigma=3",
        "why? key = value; token = other",
    ],
)
def test_ordinary_text_is_left_alone(plain: str) -> None:
    assert redact(plain) == plain


@pytest.mark.parametrize(
    "piece", ["?", ";a=", "?a=%", "://", "://@", "://a@", "?key=", "%3Fkey%3D", "#a/", "&%25", "author", "=", "?a=%26b"]
)
def test_redaction_of_a_long_text_ends(piece: str) -> None:
    # Were it quadratic, each of these would take minutes.
    long = piece * (400_000 // len(piece))
    redacted = redact(long)
    assert redact(redacted) == redacted
    assert redact("?" + long + "://" + long)


@pytest.mark.parametrize(
    "text, shown",
    [
        ("evil\x1b]0;owned\x07\x1b[2J", r"evil\x1b]0;owned\x07\x1b[2J"),
        ("a\nerror: b\r\tc\x7f\x9b", r"a\nerror: b\r\tc\x7f\x9b"),
        ("\u202egnp.exe\u2066 \u2028", r"\u202egnp.exe\u2066 \u2028"),
        ("\udcff", r"\udcff"),
        ("Zürich 中 👩‍👩‍👧 שלום", "Zürich 中 👩‍👩‍👧 שלום"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert quote_controls(text) == shown
    assert quote_controls(shown) == shown


def test_the_allowed_share_itself_is_still_allowed() -> None:
    check_bad_fraction(0, 0, 0.0, "errors/", {})
    check_bad_fraction(1, 4, 0.25, "errors/", {})
    with pytest.raises(TooManyBadInputsError, match=r"2 of 4 .* errors/") as caught:
        check_bad_fraction(2, 4, 0.25, "errors/", {"bad": 2})
    assert caught.value.summary == {"bad": 2}
