"""Train a generator on a prepared data set: `python jobs/train.py --help`."""

from p2p.cli import run_job
from p2p.training import TrainConfig, train

if __name__ == "__main__":
    raise SystemExit(run_job(TrainConfig, train))
