"""Measure the jobs against the bare network on this machine: `python jobs/benchmark.py --help`."""

from p2p.benchmark import BenchmarkConfig, benchmark
from p2p.cli import run_job

if __name__ == "__main__":
    raise SystemExit(run_job(BenchmarkConfig, benchmark))
