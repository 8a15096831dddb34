"""The files for Ray's launcher, judged as `ray up` judges them, without a cloud."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.command_runner import DockerCommandRunner
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

ROOT = Path(__file__).parent.parent.parent
NAMES = ("aws", "gcp")


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_ray_accepts_it_and_refuses_it_spoiled(name: str) -> None:
    validate_config(prepare_config(load(name)))
    for spoil in (
        lambda config: config.update(max_worker=3),
        lambda config: config["docker"].update(imagee="p2p"),
        lambda config: config["available_node_types"]["head"].pop("resources"),
        lambda config: config["available_node_types"]["cpu-workers"].update(min_workers="none"),
        lambda config: config["available_node_types"]["cpu-workers"].update(spot=True),
        lambda config: config["provider"].update(use_internal_ips="yes"),
    ):
        config = copy.deepcopy(load(name))
        spoil(config)
        with pytest.raises(jsonschema.ValidationError):
            validate_config(prepare_config(config))


@pytest.mark.parametrize("name", NAMES)
def test_the_head_stays_and_workers_come_and_go(name: str) -> None:
    config = load(name)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    spot = {"aws": "InstanceMarketOptions", "gcp": "scheduling"}[name]
    assert head["resources"] == {"CPU": 0, "GPU": 0} and spot not in head["node_config"]
    (start,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(shlex.split(start))
    assert set(types) == {"cpu-workers", "gpu-workers"}
    for kind in types.values():
        assert kind["min_workers"] == 0 and 0 < kind["max_workers"] <= config["max_workers"]
        assert "spot" in str(kind["node_config"][spot]).lower()
    assert types["gpu-workers"]["resources"]["GPU"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_nothing_listens_to_the_world(name: str) -> None:
    config = load(name)
    (start,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in shlex.split(start)
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/p2p/.ray/auth_token": "~/.ray/auth_token"}
    assert config["provider"]["use_internal_ips"] is True
    for kind in config["available_node_types"].values():
        node = kind["node_config"]
        if name == "aws":  # otherwise Ray makes a group with port 22 open to everyone
            assert node["SecurityGroupIds"] and node["MetadataOptions"] == {"HttpTokens": "required"}
        else:
            assert all("accessConfigs" not in network for network in node["networkInterfaces"])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_installed_on_the_nodes(name: str) -> None:
    prepared = prepare_config(load(name))
    assert [prepared[step] for step in ("setup_commands", "head_setup_commands", "worker_setup_commands")] == [[]] * 3


@pytest.mark.parametrize("name", NAMES)
def test_containers_can_gain_no_privileges(name: str) -> None:
    options = load(name)["docker"]["run_options"]
    assert {"--cap-drop ALL", "--security-opt no-new-privileges"} <= set(options)
    assert not re.findall(r"--privileged|--cap-add|--pid|--userns|docker\.sock", " ".join(options))


@pytest.mark.parametrize("name", NAMES)
def test_workers_are_somebody_else_than_the_head(name: str) -> None:
    """The head's identity may start machines; the workers decode what others made."""
    config = load(name)
    types = config["available_node_types"]
    field = {"aws": "IamInstanceProfile", "gcp": "serviceAccounts"}[name]
    head = types.pop(config["head_node_type"])["node_config"][field]
    (worker,) = {json.dumps(kind["node_config"][field]) for kind in types.values()}
    if name == "aws":
        assert head == {"Arn": "HEAD-PROFILE"} and json.loads(worker) == {"Arn": "WORKER-PROFILE"}
    else:
        (account,) = json.loads(worker)
        assert account["email"] == "WORKER-ACCOUNT" and head[0]["email"] == "HEAD-ACCOUNT"
        assert {scope.rpartition("/")[2] for scope in account["scopes"]} == {"devstorage.read_write", "logging.write"}


def test_the_token_is_made_readable_by_its_user_alone() -> None:
    made = re.findall(r"(?m)^.*ray get-auth-token --generate.*$", (ROOT / "cluster" / "README.md").read_text())
    assert made and all("chmod 600 ~/.ray/auth_token" in line for line in made)


class Machine:
    """A machine with NVIDIA's container runtime, as far as Ray's launcher asks one over ssh; keeps what it is told."""

    ssh_user, cluster_name = "ubuntu", "p2p"

    def __init__(self) -> None:
        self.told: list[str] = []

    def run(self, command: str, **_: Any) -> bytes:
        self.told.append(command)
        answers = {
            "command -v docker": b"/usr/bin/docker",
            "inspect -f": b"[]",
            ".Runtimes": b"map[nvidia:{nvidia-container-runtime}]",
            "meminfo": b"MemAvailable: 9999999 kB",
        }
        return next((answer for words, answer in answers.items() if words in command), b"")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["head", "cpu-workers", "gpu-workers"])
def test_containers_get_the_gpus_of_machines_that_have_some(name: str, kind: str) -> None:
    """By the command that Ray's launcher gives docker: a runtime alone gives an image none that does not ask itself."""
    docker = AutoscalingConfig(prepare_config(load(name)), skip_content_hash=True).get_docker_config(kind)
    runner = DockerCommandRunner(
        docker,
        log_prefix="",
        node_id="1",
        provider=None,
        auth_config={"ssh_user": "ubuntu"},
        cluster_name="p2p",
        process_runner=subprocess,
        use_internal_ip=True,
    )
    runner.ssh_command_runner = machine = Machine()
    runner.run_init(as_head=kind == "head", file_mounts={}, sync_run_yet=True)
    (command,) = [command for command in machine.told if "docker run" in command]
    words = shlex.split(command)
    assert ("--gpus" in words and words[words.index("--gpus") + 1] == "all") == (kind == "gpu-workers"), command
    assert docker["image"] in words and "--cap-drop" in words
