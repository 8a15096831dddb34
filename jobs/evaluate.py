"""Measure a checkpoint on held-out pairs: `python jobs/evaluate.py --help`."""

from p2p.cli import run_job
from p2p.evaluation import EvaluateConfig, evaluate

if __name__ == "__main__":
    raise SystemExit(run_job(EvaluateConfig, evaluate))
