"""Pictures over HTTP: several requests at once over one set of weights, with a preset for each request.

    pip install fastapi uvicorn
    python examples/server.py mini/t2i-dit --port 8000 --workers 2
    curl -X POST localhost:8000/pictures -H "content-type: application/json" \\
         -d '{"prompt": "a large red circle on a white background", "preset": "fast"}' -o picture.png

At most ``workers`` pictures are made at a time, and at most ``queue`` requests wait for their turn; more are told to
come back later (503). A client that hangs up ends its run at the next step. ``GET /health`` says whether pictures can
be made, ``GET /metrics`` counts what happened, in the text format of Prometheus.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from queue import SimpleQueue
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, Field

import hasten
from hasten.extend import Pipeline
from hasten.pipelines.mini import recommended_call

PRESETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fast": {"bottleneck": {"high_first": 1.0, "delta": 0.2}},
}
"""Name of a preset -> techniques."""


class Wish(BaseModel):
    """What a client asks for."""

    prompt: str = Field(min_length=1, max_length=1000)
    preset: str = "fast"
    seed: int = Field(0, ge=0, lt=2**63)
    steps: int = Field(14, ge=1, le=100)
    side: int | None = Field(
        None, ge=64, le=2048, description="pixels of a side; the model's own if not given"
    )


class HungUp(Exception):
    """The client does not wait any more."""


class Studio:
    """One set of weights, and views of it for each worker and preset.

    Args:
        pipe: the pipeline.
        call: arguments of every call.
        presets: techniques by name.
        workers: pictures made at a time.
        queue: requests that may wait beside those.
    """

    def __init__(
        self,
        pipe: Pipeline,
        call: Mapping[str, Any],
        presets: Mapping[str, Mapping[str, Any]],
        workers: int,
        queue: int,
    ) -> None:
        pipe.set_progress_bar_config(disable=True)
        accel = hasten.accelerate(pipe, {})
        self.presets = tuple(presets)
        self.call = dict(call)
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self._free: SimpleQueue[dict[str, Any]] = SimpleQueue()
        for _ in range(workers):
            self._free.put({name: accel.view(dict(preset)) for name, preset in presets.items()})
        self.workers, self.room = workers, workers + queue
        self.inside = 0

    def make(self, wish: Wish, gone: threading.Event) -> bytes:
        """The picture as PNG. Waits for a free worker.

        Raises:
            HungUp: ``gone`` was set before the picture was there.
        """
        views = self._free.get()
        began = time.perf_counter()
        try:
            picture = self._picture(views[wish.preset], wish, gone)
        finally:
            self._free.put(views)
            self.seconds += time.perf_counter() - began
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()

    def _picture(self, view: Any, wish: Wish, gone: threading.Event) -> Any:
        def stop(pipe: Pipeline, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
            if gone.is_set():
                raise HungUp
            return kwargs

        if gone.is_set():
            raise HungUp
        size = {} if wish.side is None else {"height": wish.side, "width": wish.side}
        arguments = {**self.call, **size, "num_inference_steps": wish.steps, "callback_on_step_end": stop}
        return view(wish.prompt, generator=torch.Generator().manual_seed(wish.seed), **arguments).images[0]

    def metrics(self) -> str:
        """Counters in the text format of Prometheus."""
        lines = [f'pictures_total{{result="{name}"}} {count}' for name, count in sorted(self.counts.items())]
        lines += [f"requests_inside {self.inside}", f"generation_seconds_total {self.seconds:.3f}"]
        return "\n".join(lines) + "\n"


def make_app(studio: Studio) -> FastAPI:
    """The application that serves a studio."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001
        # A thread for every request that is let in, so that none waits inside of the event loop.
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(studio.room) as threads:
            asyncio.get_running_loop().set_default_executor(threads)
            yield

    app = FastAPI(title="Pictures", lifespan=lifespan)

    @app.post("/pictures", response_class=Response)
    async def pictures(wish: Wish, request: Request) -> Response:
        if wish.preset not in studio.presets:
            raise HTTPException(
                422, f"no preset is called {wish.preset!r}; there are {', '.join(studio.presets)}"
            )
        if studio.inside >= studio.room:
            studio.counts["refused"] += 1
            raise HTTPException(503, "too many requests are waiting", {"Retry-After": "5"})
        studio.inside += 1
        try:
            return await answer(wish, request)
        finally:
            studio.inside -= 1

    async def answer(wish: Wish, request: Request) -> Response:
        gone = threading.Event()
        work = asyncio.ensure_future(asyncio.to_thread(studio.make, wish, gone))
        try:
            while not (await asyncio.wait({work}, timeout=0.1))[0]:
                if await request.is_disconnected():
                    gone.set()
            picture = await work
        except HungUp:
            studio.counts["hung up"] += 1
            return Response(status_code=499)
        except (hasten.HastenError, ValueError) as error:
            studio.counts["failed"] += 1
            raise HTTPException(422, str(error)) from error
        studio.counts["made"] += 1
        return Response(picture, media_type="image/png")

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "workers": studio.workers, "inside": studio.inside, "room": studio.room}

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(studio.metrics(), media_type="text/plain; version=0.0.4")

    return app


def main() -> None:
    """Load a model and serve it."""
    import uvicorn

    parser = argparse.ArgumentParser(description="Pictures over HTTP.")
    parser.add_argument("model", nargs="?", default="mini/t2i-dit")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=2, help="pictures made at a time")
    parser.add_argument("--queue", type=int, default=8, help="requests that may wait")
    options = parser.parse_args()
    mini = options.model.startswith("mini/")
    call = recommended_call(options.model) if mini else {}
    call.pop("num_inference_steps", None)
    studio = Studio(hasten.load(options.model), call, PRESETS, options.workers, options.queue)
    uvicorn.run(make_app(studio), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
