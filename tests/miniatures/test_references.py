"""The exact mean of what a caption allows, against one that spells every clip out, and training on own ways."""

import pytest
import torch

from hasten_miniatures import references as module
from hasten_miniatures.moving import ACROSS, parse_moving_caption, trajectory
from hasten_miniatures.moving_pools import caption_ids, video_tokenizer
from hasten_miniatures.on_policy import on_policy_loss
from hasten_miniatures.references import Posterior, References
from hasten_miniatures.t2i_unet import build_scheduler

CAPTIONS = (
    "a large red circle moving left on a white background",
    "a small blue star moving down on a black background",
)


@pytest.fixture(scope="module")
def drawn():
    """Two clips (4, 3, 8, 8) over backgrounds of their own, and which of their shifts count."""
    generator = torch.Generator().manual_seed(0)
    empty = torch.randn((2, 4, 8, 8), generator=generator)
    clips = empty.unsqueeze(2).repeat(1, 1, 3, 1, 1)
    clips[..., 2:5, 3:6] += torch.randn((2, 4, 3, 3, 3), generator=generator)
    allowed = torch.rand((2, 8, 8), generator=generator) < 0.4
    return clips, empty, allowed


@pytest.mark.parametrize("alpha", [0.0, 0.003, 0.05, 0.5])
def test_the_mean_is_that_of_all_clips_written_out(drawn, alpha):
    clips, empty, allowed = drawn
    noisy = alpha**0.5 * clips[1] + (1 - alpha) ** 0.5 * torch.randn(
        clips[1].shape, generator=torch.Generator().manual_seed(1)
    )
    every = [
        empty[k][:, None] + (clips[k] - empty[k][:, None]).roll((down, right), (-2, -1))
        for k, down, right in allowed.nonzero().tolist()
    ]
    logs = [-(noisy - alpha**0.5 * clip).square().sum() / (2 * (1 - alpha)) for clip in every]
    weights = torch.stack(logs).softmax(0)
    expected = sum(weight * clip for weight, clip in zip(weights, every, strict=True))
    found = Posterior(clips, empty, allowed).mean(noisy, alpha)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_clip_with_little_noise_is_found_again(drawn):
    clips, empty, _ = drawn
    shifted = empty[1][:, None] + (clips[1] - empty[1][:, None]).roll((3, 6), (-2, -1))
    noisy = 0.99**0.5 * shifted + 0.1 * torch.randn(shifted.shape, generator=torch.Generator().manual_seed(1))
    everywhere = torch.ones(2, 8, 8, dtype=torch.bool)
    found = Posterior(clips, empty, everywhere).mean(noisy, 0.99)
    torch.testing.assert_close(found, shifted, atol=1e-4, rtol=1e-4)


@pytest.fixture
def references(monkeypatch):
    monkeypatch.setattr(module, "_moving_scenes", lambda: [parse_moving_caption(text) for text in CAPTIONS])
    return References.stored(lambda video: video[:, :, :, ::4, ::4], 4, 3, None)


def test_references_are_clips_of_their_captions(references):
    assert references.clips.shape == (2, 3, 3, 4, 16, 16)
    assert references.empty.shape == (2, 3, 3, 16, 16)
    assert torch.equal(references.ids, caption_ids(video_tokenizer(), list(CAPTIONS)))
    corner = references.empty[..., :1, :1].expand_as(references.empty)
    assert torch.equal(references.empty, corner), "a background alone has one colour"
    still = (references.clips - references.empty.unsqueeze(3)).abs().amax((2, 3)) == 0
    assert still.flatten(2).any(-1).all(), "what the object does not pass is background"
    assert not still.flatten(2).all(-1).any(), "the object is somewhere"


def test_shifts_keep_the_object_where_the_data_set_has_it(references):
    for text, allowed, first in zip(CAPTIONS, references.allowed, (0, 3), strict=True):
        scene = parse_moving_caption(text)
        for k, mask in enumerate(allowed):
            start = trajectory(scene, module._STREAM, first + k, 4)[0][0]
            horizontal = "left" in text
            place = start.y if horizontal else start.x
            for down, right in torch.cartesian_prod(torch.arange(16), torch.arange(16)).tolist():
                moved = (place + (down if horizontal else right) / 16) % 1
                assert bool(mask[down, right]) == (ACROSS[0] <= moved <= ACROSS[1])


def test_every_moving_caption_of_the_training_split_has_references():
    scenes = module._moving_scenes()
    assert len({scene.caption() for scene in scenes}) == len(scenes) == 776
    assert all(scene.moves and not scene.held_out for scene in scenes)


def _loss(references, denoise):
    empty = caption_ids(video_tokenizer(), [""])
    generator = torch.Generator().manual_seed(3)
    return on_policy_loss(
        denoise, references, build_scheduler(), empty, count=2, guidance=3.0, generator=generator
    )


def test_an_exact_denoiser_has_no_loss_on_its_own_way_and_ends_at_one_clip(references):
    scheduler, seen = build_scheduler(), []
    rows = {tuple(ids): i for i, ids in enumerate(references.ids.tolist())}

    def denoise(noisy, times, ids):
        alpha = float(scheduler.alphas_cumprod[times[0, 0]])
        captions = [rows.get(tuple(row), 0) for row in ids.tolist()]
        means = torch.stack(
            [references.posterior(i).mean(x, alpha) for i, x in zip(captions, noisy, strict=True)]
        )
        seen.append((int(times[0, 0]), tuple(ids[0].tolist()) in rows))
        return (alpha**0.5 * noisy - means) / (1 - alpha) ** 0.5

    assert float(_loss(references, denoise)) < 1e-8
    times = [time for time, _ in seen]
    assert times[0] == 999
    assert times == sorted(times, reverse=True)
    assert min(times) >= 750
    assert [captioned for _, captioned in seen] == [True, False] * (len(seen) // 2)


def test_the_states_are_the_models_own_and_carry_no_gradient(references):
    weight = torch.zeros((), requires_grad=True)
    states = []

    def denoise(noisy, times, ids):
        states.append(noisy)
        return weight + torch.zeros_like(noisy)

    loss = _loss(references, denoise)
    loss.backward()
    assert weight.grad is not None
    assert float(loss.detach()) > 0.1, "a velocity of zero is wrong"
    assert not any(state.requires_grad for state in states)
    assert not torch.equal(states[0], states[2])
    again = _loss(references, denoise)
    assert torch.equal(again, loss), "a pure function of its generator"
