"""Makes the shared tiny pipelines and the slow reference importable; without a GPU, Triton interprets its kernels."""

import os
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
