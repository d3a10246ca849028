"""One of two processes of a search or of a call whose experts have to agree, or one process that is killed."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]


def make_study(data: Path) -> Any:
    """A tiny U-Net with twelve pictures."""
    from hasten._target import Target
    from hasten.extend import LatentSize
    from hasten.plugins.aptp.encoder import PipelineEncoder
    from hasten.plugins.aptp.make.conditioner import Conditioner
    from hasten.plugins.aptp.make.context import TrainingContext
    from hasten.plugins.aptp.make.data import prepare, scene_pictures
    from hasten.plugins.aptp.manifest import GrainEntry

    pipe = __import__("subjects").tiny_unet()
    about = {"model": "test", "router_encoder": "pipeline", "router_model": "text_encoder"}
    encoder = PipelineEncoder(pipe, "text_encoder")
    conditioner = Conditioner.of(Target.of(pipe), LatentSize(8, 8))
    made = prepare(conditioner, encoder, scene_pictures(12, 32), data, about)
    return TrainingContext.of(pipe, made, GrainEntry(ffn=8, align=1))


def search_until(folder: Path, kill_at: int | None = None) -> None:
    """Search, save every five steps, and be killed in the middle of one."""
    import os
    import signal

    from hasten.plugins.aptp.make import search as module
    from hasten.plugins.aptp.make.options import SearchOptions
    from hasten.plugins.aptp.make.search import Searcher, search

    module.Loop = partial(module.Loop, save_every=5)  # type: ignore[misc, assignment]
    original = Searcher.loss

    def loss(self: Searcher, step: int, *generators: Any) -> Any:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, step, *generators)

    Searcher.loss = loss  # type: ignore[method-assign]
    options = SearchOptions(budgets=(0.6, 0.9), steps=14, batch=4, importance_batches=1)
    search(make_study(folder / "data"), options, folder / "search")


def search_together(folder: Path) -> None:
    """Search with half of the batch in each process and write this process's codes."""
    import torch
    from accelerate import PartialState
    from safetensors.torch import save_file

    from hasten.plugins.aptp.make.loop import Loop
    from hasten.plugins.aptp.make.options import SearchOptions
    from hasten.plugins.aptp.make.search import search

    state = PartialState(cpu=True, backend="gloo")
    study = make_study(folder / f"data{state.process_index}")
    kept: dict[str, torch.Tensor] = {}
    original = Loop.run

    def run(self: Loop, stop_after: int | None = None) -> None:
        original(self, stop_after)
        kept.update({name: value.detach().clone() for name, value in self.parameters.items()})

    Loop.run = run  # type: ignore[method-assign]
    options = SearchOptions(budgets=(0.6, 0.9), steps=6, batch=4, importance_batches=1)
    found = search(study, options, folder / "search")
    assert found is not None
    save_file(kept, folder / f"codes{state.process_index}.safetensors")
    (folder / f"plans{state.process_index}.txt").write_text(str([plan.digest for plan in found.plans]))
    state.destroy_process_group()


def disagree(folder: Path) -> None:
    """Route to different experts and write what is said about it."""
    from accelerate import PartialState

    from hasten._errors import HastenError
    from hasten.plugins.aptp.agreement import agree
    from hasten.plugins.aptp.router import Decision

    state = PartialState(cpu=True, backend="gloo")
    rank = state.process_index
    assert [d.expert for d in agree([Decision(2, 0.5, "router")])] == [2]
    try:
        agree([Decision(rank, 0.5, "router")])
    except HastenError as error:
        (folder / f"said{rank}.txt").write_text(str(error))
    state.destroy_process_group()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    tasks = {"search": search_together, "disagree": disagree, "alone": search_until}
    tasks["killed"] = partial(search_until, kill_at=8)
    tasks[sys.argv[1]](Path(sys.argv[2]))
