"""``hasten video`` as a user types it, under ``torchrun`` too, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import psutil
import pytest
import torch
from clip_cases import build
from clip_launch import free_port
from families import TEXT

import hasten

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text-to-video pipeline on disk, with a tokenizer and a text encoder."""
    import transformers

    folder = tmp_path_factory.mktemp("model")
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    pipe = build("text-to-video")
    pipe.register_modules(
        tokenizer=transformers.CLIPTokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TEXT
        ),
        text_encoder=transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=24,
                intermediate_size=24,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=TEXT,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        ).eval(),
    )
    pipe.save_pretrained(folder / "pipe")
    return folder / "pipe"


def frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", **more}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=500)


def test_video_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hasten._cli import build_app

    arguments = [
        "video",
        str(model),
        "--prompt",
        "a cat",
        "--prompt",
        "a dog",
        "--frames",
        "9",
        "--steps",
        "2",
    ]
    arguments += ["--height", "32", "--width", "48", "--json", "--seed", "3", "--fps", "12"]
    sets = ["-s", "video_infinity.halo=2", "-s", "video_infinity.global_frames=3"]
    with pytest.raises(SystemExit) as end:
        build_app()([*arguments, *sets, "--out", str(tmp_path / "a.mp4")])
    printed = capsys.readouterr()
    assert end.value.code == 0, printed.err
    facts = json.loads(printed.out)
    assert facts["frames"] == frames_in(tmp_path / "a.mp4") == 9
    assert facts["world"] == 1
    with pytest.raises(SystemExit) as end:
        build_app()([*arguments, *sets, "--out", str(tmp_path / "pictures")])
    assert end.value.code == 0
    capsys.readouterr()
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 9
    for wrong, message in (
        (["--fps", "fast"], "--fps fast is no number"),
        (["--codec", "h265"], "codec 'h265' is unknown"),
        (["-s", "video_infinity.halo=9"], "halo=9 is longer than the shortest"),
    ):
        with pytest.raises(SystemExit) as end:
            build_app()([*arguments, *sets, *wrong, "--out", str(tmp_path / "b.mp4")])
        assert end.value.code == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "b.mp4").exists()


def test_a_file_says_the_same_as_the_command_line(model: Path, tmp_path: Path) -> None:
    from hasten._cli import build_app

    (tmp_path / "run.yaml").write_text(
        f"schema: 1\nmodel: {model}\nsteps: 2\nframes: 9\nseed: 3\nprompts: [a cat, a dog]\n"
        f"out: {tmp_path / 'file'}\nheight: 32\nwidth: 48\n"
        "techniques:\n  - {name: video_infinity, halo: 2, global_frames: 3, clips: 2}\n"
    )
    spelled = [str(model), "-p", "a cat", "-p", "a dog", "--frames", "9", "--steps", "2", "--seed", "3"]
    for option in ("halo=2", "global_frames=3", "clips=2"):
        spelled += ["-s", f"video_infinity.{option}"]
    spelled += ["--height", "32", "--width", "48", "--out", str(tmp_path / "line")]
    for given in (["--config", str(tmp_path / "run.yaml")], spelled):
        with pytest.raises(SystemExit) as end:
            build_app()(["video", *given])
        assert end.value.code == 0
    pictures = [sorted((tmp_path / name).glob("*.png")) for name in ("file", "line")]
    assert len(pictures[0]) == 9
    assert [file.read_bytes() for file in pictures[0]] == [file.read_bytes() for file in pictures[1]]


@pytest.mark.slow
def test_torchrun_restarts_a_killed_rank(tmp_path: Path) -> None:
    """The first attempt loses a rank in step 5, the second goes on at step 4, makes the same video and ends cleanly."""
    options = {"halo": 1, "global_frames": 2, "clips": 3, "checkpoint_every": 2, "timeout_s": 60.0}
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, json, os, sys\n"
        "from pathlib import Path\n"
        "from clip_faults import video\n"
        "import torch\n"
        "def threads():\n"
        "    left = [task.read_text() for task in Path('/proc/self/task').glob('*/comm')]\n"
        "    Path(sys.argv[1] + f'.{os.environ[\"RANK\"]}.threads').write_text(''.join(left))\n"
        "atexit.register(threads)  # before the plugin registers its own, so called after that\n"
        "torch.set_num_threads(1)\n"
        "first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "fault = {'rank': 1, 'step': 9, 'kind': 'kill'} if first else None\n"
        "video(sys.argv[1], json.loads(sys.argv[2]), None, fault)\n"
        "from hasten.plugins.video_infinity.config import VideoInfinityConfig\n"
        "from hasten.plugins.video_infinity.joining import join\n"
        "layouts = [join(VideoInfinityConfig(cfg_ranks=n), torch.device('cpu')) for n in (1, 2)]\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    launcher += ["--master-port", str(free_port())]
    out, checkpoint = tmp_path / "out", str(tmp_path / "run")
    done = run(*launcher, str(script), str(out), json.dumps({**options, "checkpoint": checkpoint}))
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "exitcode: -9" in done.stderr  # the first attempt did lose a rank
    from clip_faults import video

    video(str(tmp_path / "alone"), options)
    expected = torch.load(f"{tmp_path / 'alone'}.0")
    for rank in range(2):
        assert float((torch.load(f"{out}.{rank}") - expected).abs().max()) < 1e-5 * float(
            expected.abs().max()
        )
        # One that outlived the group could end the process with SIGABRT while the interpreter shuts down.
        assert "gloo" not in Path(f"{out}.{rank}.threads").read_text()


@pytest.mark.slow
def test_two_machines_start_again_after_one_lost_its_process(model: Path, tmp_path: Path) -> None:
    """The script for several machines, twice on this one; each agent counts its own restarts."""
    out, checkpoint = tmp_path / "a.mp4", tmp_path / "run"
    command = [str(HERE.parents[2] / "examples" / "long_video_nodes.sh"), str(model), "--prompt", "a"]
    command += ["--frames", "8", "--steps", "24", "--height", "32", "--width", "48", "--out", str(out)]
    command += ["--checkpoint", str(checkpoint), "-s", "video_infinity.checkpoint_every=1"]
    command += ["-s", "video_infinity.halo=1", "-s", "video_infinity.global_frames=2"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HEAD": "localhost", "NODES": "2", "GPUS": "1"}
    variables |= {"PORT": str(free_port()), "RESTARTS": "2"}
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    log = (tmp_path / "log").open("w")
    machines = [subprocess.Popen(command, env=variables, stdout=log, stderr=log) for _ in range(2)]
    try:
        while not list(checkpoint.glob("step-*/clip-0001.safetensors")):
            assert machines[1].poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        worker = next(
            p for p in psutil.Process(machines[1].pid).children(recursive=True) if "video" in p.cmdline()
        )
        worker.kill()
        assert [machine.wait(timeout=300) for machine in machines] == [0, 0], (tmp_path / "log").read_text()[
            -3000:
        ]
    finally:
        for machine in machines:
            machine.kill()
    assert "exitcode: -9" in (tmp_path / "log").read_text()  # a process was lost
    assert frames_in(out) == 8


def test_an_interrupt_keeps_checkpoints_and_the_same_command_goes_on(model: Path, tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "a.mp4", tmp_path / "run"
    command = [sys.executable, "-m", "hasten", "video", str(model), "--prompt", "a", "--frames", "8"]
    command += ["--steps", "60", "--height", "32", "--width", "48", "--out", str(out)]
    command += ["--checkpoint", str(checkpoint), "-s", "video_infinity.checkpoint_every=1"]
    command += ["-s", "video_infinity.halo=2", "-s", "video_infinity.global_frames=2"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    # A shell that runs tests in the background has them ignore interrupts.
    process = subprocess.Popen(
        command,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(checkpoint.glob("step-*/clip-*.safetensors")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=200)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    assert not out.exists()
    kept = max(int(folder.name[5:]) for folder in checkpoint.glob("step-*"))
    assert 0 < kept < 60
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert frames_in(out) == 8


def test_example_writes_a_long_video(model: Path, tmp_path: Path) -> None:
    example = HERE.parents[2] / "examples" / "long_video.py"
    out = tmp_path / "long.mp4"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = run(*launcher, "--master-port", str(free_port()), str(example), str(model), str(out), "33", "2")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert f"33 frames in {out}, 2 processes" in done.stdout
    assert frames_in(out) == 33
    assert hasten.load(model) is not None
