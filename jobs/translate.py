"""Translate a corpus of images with a trained generator."""

try:
    from p2p.cli import run_job
    from p2p.translation import TranslateConfig, translate
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; run `make install`, then `. .venv/bin/activate`") from None

if __name__ == "__main__":
    raise SystemExit(run_job(TranslateConfig, translate))
