"""The whole product on a bucket: pairs in, a run, a translation and its judgement out, nothing on the local disk."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from p2p.evaluation import EvaluateConfig, evaluate
from p2p.preparation import PrepareConfig, prepare
from p2p.storage.filesystems import list_files, read_bytes, read_json, write_bytes
from p2p.storage.images import decode
from p2p.training import TrainConfig, train
from p2p.translation import TranslateConfig, translate

TINY = ("--generator", "unet_64", "--ngf", 4, "--discriminator", "patch_16", "--ndf", 4, "--crop-size", 64)


def upload(folder: Path, uri: str) -> None:
    for file in folder.iterdir():
        write_bytes(f"{uri}/{file.name}", file.read_bytes())


def rows_of(uri: str, folder: str) -> list[dict[str, Any]]:
    files = [file.uri for file in list_files(f"{uri}/{folder}", (".parquet",))]
    return [row for file in files for row in pq.read_table(io.BytesIO(read_bytes(file))).to_pylist()]


@pytest.mark.timeout(900)
def test_pairs_in_a_bucket_become_a_translation_in_a_bucket(
    train_in_this_process: None, s3: Any, make_pairs: Any, run_cli: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    raw, pairs, run, translated, judged = map(s3.uri, ("raw", "pairs", "run", "translated", "evaluation"))
    for index, (split, count) in enumerate({"train": 8, "val": 3}.items()):
        upload(make_pairs(tmp_path / split, count, 80, seed=index), f"{raw}/{split}")
    write_bytes(f"{raw}/train/broken.png", b"not a picture")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    outcomes = []

    def job(*words: Any) -> dict[str, Any]:
        outcome = run_cli(*words)
        outcomes.append(outcome)
        assert outcome.status == 0, outcome.stderr
        assert outcome.summary == read_json(f"{words[words.index('--output') + 1]}/summary.json")
        return dict(outcome.summary)

    words = ("--source", raw, "--output", pairs, "--load-size", 72, "--max-bad-fraction", 0.2)
    prepared = job(PrepareConfig, prepare, *words)
    assert (prepared["pairs"]["train"], prepared["pairs"]["val"], prepared["bad"]) == (8, 3, 1)
    assert [row["source_uri"].rsplit("/", 1)[-1] for row in rows_of(pairs, "errors")] == ["broken.png"]

    words = ("--data", pairs, "--output", run, *TINY, "--batch-size", 2, "--epochs-decay", 0)
    assert job(TrainConfig, train, *words, "--epochs", 2)["steps"] == 8
    assert read_json(f"{run}/latest.json")["epoch"] == 2
    assert b"<html" in read_bytes(f"{run}/report.html").lower()

    words = ("--checkpoint", run, "--source", f"{raw}/val", "--side", "left", "--output", translated)
    assert job(TranslateConfig, translate, *words)["translated"] == 3
    assert job(TranslateConfig, translate, *words)["skipped"] == 3
    images = {row["image_id"]: decode(row["image"]) for row in rows_of(translated, "data")}
    assert sorted(images) == ["0000.png", "0001.png", "0002.png"]
    assert {image.shape for image in images.values()} == {(80, 80, 3)}
    assert {row["status"] for row in rows_of(translated, "ledger")} == {"translated"}

    job(EvaluateConfig, evaluate, "--checkpoint", run, "--data", pairs, "--split", "val", "--output", judged)
    metrics = read_json(f"{judged}/metrics.json")
    assert metrics["n"] == 3
    assert np.isfinite([metrics["l1"], metrics["psnr"], metrics["ssim"]]).all()

    assert list(elsewhere.iterdir()) == []
    secrets = [os.environ[name].encode() for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")]
    said = {"output": "".join(outcome.stdout + outcome.stderr for outcome in outcomes).encode()}
    objects = {file.uri: read_bytes(file.uri) for file in list_files(s3.uri())}
    assert len(objects) > 20
    for where, content in {**said, **objects}.items():
        assert not [secret for secret in secrets if secret in content], where
