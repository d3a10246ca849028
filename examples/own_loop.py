"""Accelerate a custom denoising loop: techniques are active inside a ``with`` block."""

import sys
from pathlib import Path

import torch

import hasten

PROMPT = "two small green crosses at the top on a pink background"
STEPS, GUIDANCE = 14, 3.0

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)
pipe = hasten.load("mini/t2i-dit")
accel = hasten.accelerate(pipe, ["bottleneck"])

with torch.no_grad():
    tokens, no_tokens, pooled, no_pooled = pipe.encode_prompt(PROMPT, PROMPT, PROMPT, max_sequence_length=0)
    tokens, pooled = torch.cat([no_tokens, tokens]), torch.cat([no_pooled, pooled])
    latents = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(STEPS)
    with accel.run(prompt=PROMPT, num_inference_steps=STEPS):
        for t in pipe.scheduler.timesteps:
            both = pipe.transformer(
                hidden_states=torch.cat([latents, latents]),
                timestep=t.expand(2),
                encoder_hidden_states=tokens,
                pooled_projections=pooled,
                return_dict=False,
            )[0]
            without, with_prompt = both.chunk(2)
            velocity = without + GUIDANCE * (with_prompt - without)
            latents = pipe.scheduler.step(velocity, t, latents, return_dict=False)[0]
    image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample

print(accel.report())
accel.restore()
pipe.image_processor.postprocess(image, output_type="pil")[0].save(out / "own_loop.png")
