"""Say how evaluations of the same pairs differ, and whether that is good enough: `python jobs/compare.py --help`."""

try:
    from p2p.cli import run_job
    from p2p.comparison import CompareConfig, compare
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; run `make install`, then `. .venv/bin/activate`") from None

if __name__ == "__main__":
    raise SystemExit(run_job(CompareConfig, compare))
