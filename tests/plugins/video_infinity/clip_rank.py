"""One rank of the tests with several processes: ``python rank.py CASES OUT`` under the variables of "
"``torchrun``."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
warnings.filterwarnings("ignore")


def main() -> None:
    import torch
    from clip_cases import run

    torch.set_num_threads(1)
    cases = json.loads(Path(sys.argv[1]).read_text())
    results = []
    for case in cases:
        try:
            results.append((run(case), case.get("facts"), None))
        except Exception as error:
            results.append((None, None, f"{type(error).__name__}: {error}"))
    torch.save(results, f"{sys.argv[2]}.{os.environ.get('RANK', '0')}")


if __name__ == "__main__":
    main()
