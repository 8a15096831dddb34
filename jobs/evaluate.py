"""Measure a checkpoint on held-out pairs: `python jobs/evaluate.py --help`."""

try:
    from p2p.cli import run_job
    from p2p.evaluation import EvaluateConfig, evaluate
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; run `make install`, then `. .venv/bin/activate`") from None

if __name__ == "__main__":
    raise SystemExit(run_job(EvaluateConfig, evaluate))
