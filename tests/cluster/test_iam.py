"""The policy for buckets: all that a translation needs, and nothing beside its prefixes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from conftest import S3Server

ROOT = Path(__file__).parent.parent.parent
EVERYTHING = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]})
BUCKET = "p2p-policy"
ALSO = {"s3:ListBucket": "s3:HeadBucket"}


@pytest.fixture
def server() -> Iterator[S3Server]:
    """It asks IAM about every request but the first three, which make somebody who may do everything."""
    server = S3Server(INITIAL_NO_AUTH_ACTION_COUNT="3")
    yield server
    server.stop()


def keys_of(server: S3Server, iam: Any, name: str, policy: str) -> dict[str, str]:
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=policy)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


def client(server: S3Server, service: str, keys: dict[str, str]) -> Any:
    return boto3.client(
        service,
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    )


def policy() -> str:
    """The project's, for one bucket, with names of moto's for what Amazon covers by others."""
    found = json.loads((ROOT / "cluster" / "iam" / "bucket.json").read_text().replace("BUCKET", BUCKET))
    for statement in found["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        statement["Action"] = actions + [ALSO[action] for action in actions if action in ALSO]
    return json.dumps(found)


def test_a_translation_has_what_it_needs_and_no_more(
    server: S3Server, make_image: Callable[..., bytes], checkpoint: str
) -> None:
    nobody = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    admin = keys_of(server, client(server, "iam", nobody), "admin", EVERYTHING)
    store, iam = client(server, "s3", admin), client(server, "iam", admin)
    store.create_bucket(Bucket=BUCKET)
    for number in range(3):
        store.put_object(Bucket=BUCKET, Key=f"corpus/{number}.png", Body=make_image(64, 64, seed=number))
    for path in Path(checkpoint).iterdir():
        store.put_object(Bucket=BUCKET, Key=f"runs/maps/{path.name}", Body=path.read_bytes())
    worker = keys_of(server, iam, "worker", policy())

    def translate(output: str) -> subprocess.CompletedProcess[str]:
        words = ["--checkpoint", f"s3://{BUCKET}/runs/maps", "--source", f"s3://{BUCKET}/corpus", "--gpu", "false"]
        return subprocess.run(
            [sys.executable, ROOT / "jobs" / "translate.py", *words, "--output", f"s3://{BUCKET}/{output}"],
            env={**os.environ, **worker, "AWS_ENDPOINT_URL": server.url},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    done = translate("translated")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["translated"] == 3
    refused = translate("pairs/maps")
    assert refused.returncode in (1, 2) and "Traceback" not in refused.stderr
    assert not store.list_objects_v2(Bucket=BUCKET, Prefix="pairs/").get("Contents")
