"""Measure the jobs against the bare network on this machine: `python jobs/benchmark.py --help`."""

try:
    from p2p.benchmark import BenchmarkConfig, benchmark
    from p2p.cli import run_job
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; run `make install`, then `. .venv/bin/activate`") from None

if __name__ == "__main__":
    raise SystemExit(run_job(BenchmarkConfig, benchmark))
