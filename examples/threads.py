"""Two requests at once over one set of weights: each thread calls an accelerated copy of the pipeline.

    python examples/threads.py out

``copy.copy`` of an accelerated pipeline is a stock pipeline that shares the weights and has a scheduler of its own. One
accelerated pipeline called from two threads is refused: a call swaps parts of the pipeline object.
"""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hasten

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)
techniques = {"bottleneck": {"high_first": 1.0}}

pipe = hasten.load("mini/t2i-dit")
hasten.accelerate(pipe, techniques)
views = [pipe, copy.copy(pipe)]
for name in (
    "tokenizer",
    "tokenizer_2",
):  # a fast tokenizer keeps its padding between calls: one for each thread
    setattr(views[1], name, copy.deepcopy(getattr(pipe, name)))
hasten.accelerate(views[1], techniques)
prompts = [
    "a large red circle on the left on a white background",
    "two small green stars at the top on a black background",
]


def serve(number: int) -> None:
    """One request."""
    image = views[number](prompts[number], num_inference_steps=8, max_sequence_length=0).images[0]
    image.save(out / f"thread_{number}.png")


with ThreadPoolExecutor(len(views)) as threads:
    list(threads.map(serve, range(len(views))))
for view in views:
    handle = hasten.acceleration_of(view)  # what accelerate() returned, if nobody kept it
    assert handle is not None
    print(handle.report())
    hasten.restore(view)
