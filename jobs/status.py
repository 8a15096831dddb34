"""Say how far a translation is, while it runs or after it died."""

from p2p.cli import run_job
from p2p.translation.status import StatusConfig, status

if __name__ == "__main__":
    raise SystemExit(run_job(StatusConfig, status))
