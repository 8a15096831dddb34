"""Raw pairs of images -> a prepared data set."""

from p2p.cli import run_job
from p2p.preparation import PrepareConfig, prepare

if __name__ == "__main__":
    raise SystemExit(run_job(PrepareConfig, prepare))
