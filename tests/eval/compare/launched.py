"""One process of a comparison, for tests that start and kill real ones: ``launched.py MODEL OUT THREADS PAUSE``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

sys.path.insert(0, str(Path(__file__).parent))
from conftest import make_request

from hasten._processes import Processes
from hasten.eval.compare.run import run_comparison


def main() -> None:
    model, out, threads, pause = sys.argv[1:]
    torch.set_num_threads(int(threads))
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipe = DiffusionPipeline.from_pretrained(model, local_files_only=True, **absent)
    pipe.set_progress_bar_config(disable=True)
    run_comparison(
        pipe,
        make_request(),
        Path(out),
        processes=Processes.from_environment(),
        progress=lambda stage, done, total: time.sleep(float(pause)),
        patience=120,
    )


if __name__ == "__main__":
    main()
