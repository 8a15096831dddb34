"""Translate a corpus of images with a trained generator."""

from p2p.cli import run_job
from p2p.translation import TranslateConfig, translate

if __name__ == "__main__":
    raise SystemExit(run_job(TranslateConfig, translate))
