"""Two concurrent requests with one set of weights: each thread calls a view of the accelerated pipeline.

    python examples/threads.py out

A view shares the weights and has its own scheduler, tokenizers and settings. Concurrent calls of the same accelerated
pipeline raise an error, since a call replaces parts of the pipeline object.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hasten

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)

accel = hasten.accelerate(hasten.load("mini/t2i-dit"), ["bottleneck"])
views = [accel.view(), accel.view({"bottleneck": {"delta": 0.05}})]
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
    handle = hasten.acceleration_of(view)
    assert handle is not None
    print(handle.report())
accel.restore()
