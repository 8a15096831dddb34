"""Say how far a translation is, while it runs or after it died."""

try:
    from p2p.cli import run_job
    from p2p.translation.status import StatusConfig, status
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; run `make install`, then `. .venv/bin/activate`") from None

if __name__ == "__main__":
    raise SystemExit(run_job(StatusConfig, status))
