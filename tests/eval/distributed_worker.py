"""One rank of the distributed tests: ``python distributed_worker.py RANK WORLD STORE INPUT OUTPUT``.

For each case the rank takes its part of the images and writes what every metric computes after synchronising.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import MetricCollection

from hasten.eval.distributed import collect_rows, gather_moments, own_rank
from hasten.eval.functional.moments import Moments
from hasten.eval.metrics.fidelity import Psnr, Ssim
from hasten.eval.metrics.sets import Cmmd, Fid, Kid
from hasten.eval.networks.features import load_feature_network


class Positions(nn.Module):
    """A feature network without random weights: averages over a 1 x 2 grid."""

    num_features = 6

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x.double() / 255, (1, 2)).flatten(1)


def figures(generated: Tensor, reference: Tensor, mine: slice) -> dict[str, Tensor]:
    """Everything that is synchronised, from this rank's part of two sets of images."""
    network = load_feature_network(Positions())
    images, real = generated[mine], reference[mine]
    results = {}
    modules = {
        "frechet": Fid(network),
        "kid": Kid(network),
        "cmmd": Cmmd(network, sigma=None),
    }
    for name, module in modules.items():
        # Update in steps, so that list states hold several blocks.
        for part in images.split(3):
            if len(part):
                module.update(part, real=False)
        if len(real):
            module.update(real, real=True)
        results[name] = module.compute()
    pairs = MetricCollection([Psnr(), Ssim()])
    if len(images):
        pairs.update(images, baseline=real)
    results |= pairs.compute()
    rows = network(images) if len(images) else torch.empty(0, 6)
    collected = [rows]
    collect_rows(rows, collected.append)
    if own_rank() == 0:
        results["rows"] = torch.cat(collected)
    moments = gather_moments(Moments.of(rows) if len(rows) else Moments.empty(6))
    results["moments"] = moments.pack()
    return results


def main() -> None:
    """Run one rank."""
    rank, world, store, source, target = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world))
    cases = torch.load(source, weights_only=True)
    results = [
        figures(case["generated"], case["reference"], slice(*case["bounds"][int(rank)])) for case in cases
    ]
    torch.save(results, target)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
