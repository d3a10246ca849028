"""Without a GPU, Triton interprets its kernels. It reads this when it is first imported, by whichever test that is."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
