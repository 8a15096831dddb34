"""Train a generator on a prepared data set: `python jobs/train.py --help`."""

try:
    from p2p.cli import run_job
    from p2p.training import TrainConfig, train
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; run `make install`, then `. .venv/bin/activate`") from None

if __name__ == "__main__":
    raise SystemExit(run_job(TrainConfig, train))
