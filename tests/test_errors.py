"""The exception tree, its way through pickles, and what redaction takes out and leaves."""

from __future__ import annotations

import pickle

import pytest

from p2p import errors
from p2p.errors import BadInput, P2PError, TooManyBadInputs, UsageError, check_bad_fraction, redact

TREE = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, P2PError)]


def test_exit_statuses_are_those_of_the_interface() -> None:
    assert {kind.__name__: kind.exit_status for kind in TREE if kind.exit_status != 1} == {
        "UsageError": 2,
        "TooManyBadInputs": 3,
    }


@pytest.mark.parametrize("kind", TREE)
def test_every_error_survives_the_pickle_that_brings_it_from_a_worker(kind: type[P2PError]) -> None:
    extra = {BadInput: ("Kind", "words"), TooManyBadInputs: ("words", {"bad": 1})}
    error = kind(*extra.get(kind, ("words",)))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (kind, "words", vars(error))


@pytest.mark.parametrize(
    "text, hidden, kept",
    [
        ("s3://user:pa55word@bucket/key", "pa55word", "bucket/key"),
        ("https://h/k?X-Amz-Signature=abcdef&X-Amz-Credential=AKIA1&part=7", "abcdef", "part=7"),
        ("https://h/k?X-Amz-Security-Token=tokentoken", "tokentoken", "https://h/k"),
        ("https://account.blob/k?sv=2024&sig=c2lnbmF0dXJl", "c2lnbmF0dXJl", "sv=2024"),
        ("https://h/k?token=deadbeef'", "deadbeef", "https://h/k"),
        ("gs://h/k?X-Goog-Signature=feed", "feed", "gs://h/k"),
    ],
)
def test_credentials_in_addresses_are_taken_out_and_the_rest_stays(text: str, hidden: str, kept: str) -> None:
    for shown in (redact(text), str(UsageError(f"--source {text}: refused"))):
        assert hidden not in shown
        assert kept in shown


def test_keys_of_the_environment_are_taken_out_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a/long+token==")
    assert redact("header: a/long+token==;") == "header: ***;"


def test_an_empty_or_tiny_variable_does_not_blank_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a")
    assert redact("a banana") == "a banana"


@pytest.mark.parametrize("plain", ["s3://bucket/a@b/c.png", "mail me@home", "a?b=c&d=e", "C:/x?sigma=3"])
def test_ordinary_text_is_left_alone(plain: str) -> None:
    assert redact(plain) == plain


def test_the_allowed_share_itself_is_still_allowed() -> None:
    check_bad_fraction(0, 0, 0.0, "errors/", {})
    check_bad_fraction(1, 4, 0.25, "errors/", {})
    with pytest.raises(TooManyBadInputs, match=r"2 of 4 .* errors/") as caught:
        check_bad_fraction(2, 4, 0.25, "errors/", {"bad": 2})
    assert caught.value.summary == {"bad": 2}
