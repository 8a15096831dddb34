"""Raw pairs of images -> a prepared data set."""

try:
    from p2p.cli import run_job
    from p2p.preparation import PrepareConfig, prepare
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; run `make install`, then `. .venv/bin/activate`") from None

if __name__ == "__main__":
    raise SystemExit(run_job(PrepareConfig, prepare))
