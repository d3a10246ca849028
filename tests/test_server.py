"""The server of `examples/server.py`, asked by real clients over the loopback address."""

from __future__ import annotations

import gc
import http.client
import importlib.util
import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image, ImageChops

import hasten
from hasten.pipelines.mini import recommended_call

uvicorn = pytest.importorskip("uvicorn")
PROMPTS = ["a large red circle on a white background", "a small blue star on a black background"]
SMALL = {"steps": 2, "side": 128}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "server.py"
    spec = importlib.util.spec_from_file_location("server_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def served(example: ModuleType) -> Iterator[tuple[Any, int]]:
    """A studio of two workers and one place in the queue, and the port it is served at."""
    call = recommended_call("mini/t2i-dit")
    call.pop("num_inference_steps")
    presets = {"plain": {}, "fast": {"bottleneck": {"high_first": 1.0, "delta": 0.2, "min_pixels": 1}}}
    studio = example.Studio(hasten.load("mini/t2i-dit"), call, presets, workers=2, queue=1)
    config = uvicorn.Config(example.make_app(studio), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield studio, server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def ask(port: int, **wish: Any) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/pictures", json.dumps(SMALL | wish), {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def get(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", path)
    return connection.getresponse().read().decode()


def same(one: bytes, other: bytes) -> bool:
    first, second = (Image.open(io.BytesIO(data)) for data in (one, other))
    return ImageChops.difference(first, second).getbbox() is None


def test_requests_at_once_get_what_they_get_one_after_the_other(served: tuple[Any, int]) -> None:
    _, port = served
    wishes = [
        {"prompt": prompt, "preset": preset, "seed": 3} for prompt in PROMPTS for preset in ("plain", "fast")
    ]
    alone = [ask(port, **wish) for wish in wishes]
    with ThreadPoolExecutor(2) as clients:
        together = list(clients.map(lambda wish: ask(port, **wish), wishes))
    assert {status for status, _ in alone + together} == {200}
    assert all(same(one, other) for (_, one), (_, other) in zip(alone, together))
    assert not same(alone[0][1], alone[1][1])
    assert not same(alone[0][1], alone[2][1])


def test_more_than_there_is_room_for_are_told_to_come_back(served: tuple[Any, int]) -> None:
    studio, port = served
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda seed: ask(port, prompt=PROMPTS[0], seed=seed, steps=6), range(6)))
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= studio.room
    assert json.loads(get(port, "/health"))["inside"] == 0


def test_a_client_that_hangs_up_ends_its_run(served: tuple[Any, int]) -> None:
    studio, port = served
    before = studio.counts["hung up"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    wish = SMALL | {"prompt": PROMPTS[0], "steps": 100}
    connection.request("POST", "/pictures", json.dumps(wish), {"content-type": "application/json"})
    time.sleep(0.5)
    connection.close()
    until = time.monotonic() + 60
    while studio.counts["hung up"] == before and time.monotonic() < until:
        time.sleep(0.05)
    assert studio.counts["hung up"] == before + 1
    assert ask(port, prompt=PROMPTS[0])[0] == 200


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"preset": "quickest"}, "no preset is called 'quickest'; there are plain, fast"),
        ({"side": 130}, "130"),
        ({"seed": -1}, "seed"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_a_wish_that_cannot_be_met_is_told_why(
    served: tuple[Any, int], wish: dict[str, Any], told: str
) -> None:
    status, answer = ask(served[1], **{"prompt": PROMPTS[0], **wish})
    assert status == 422
    assert told in answer.decode()


def test_metrics_count_what_happened(served: tuple[Any, int]) -> None:
    studio, port = served
    before = studio.counts["made"]
    ask(port, prompt=PROMPTS[0])
    assert f'pictures_total{{result="made"}} {before + 1}' in get(port, "/metrics")


@pytest.mark.slow
def test_memory_is_flat_over_five_hundred_requests(served: tuple[Any, int]) -> None:
    _, port = served

    def resident() -> int:
        gc.collect()
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * 4096

    def many(count: int) -> None:
        with ThreadPoolExecutor(2) as clients:
            statuses = clients.map(
                lambda seed: ask(port, prompt=PROMPTS[0], seed=seed, side=64)[0], range(count)
            )
            assert set(statuses) == {200}

    many(100)
    before = resident()
    many(400)
    assert resident() - before < 20 * 2**20
