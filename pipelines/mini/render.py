"""Anti-aliased rendering of scenes from signed distances, many at a time and at any resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.pipelines.mini.scenes import Placed, Scene, place

__all__ = ["render", "render_scenes", "signed_distance"]


def render_scenes(scenes: Sequence[Scene], seed: int, first: int, size: int) -> Tensor:
    """Render scenes ``first, first + 1, ...`` of the stream ``seed``: float32 (B, 3, size, size) in [-1, 1]."""
    placed = [place(scene, seed, first + i) for i, scene in enumerate(scenes)]
    return render([objects for objects, _ in placed], [background for _, background in placed], size)


def render(
    objects: Sequence[Sequence[Placed]],
    backgrounds: Sequence[tuple[float, float, float]],
    size: int,
    *,
    wrap: bool = False,
) -> Tensor:
    """Paint each list of objects over its background, later ones on top.

    Args:
        objects: of each picture.
        backgrounds: RGB in [0, 1] of each picture.
        size: pixels of a side.
        wrap: what sticks out at one border comes in at the opposite one; coordinates may be any number.

    Returns:
        float32 (B, 3, size, size) in [-1, 1]; edges are blended over one pixel.
    """
    axis = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    canvas = (
        torch.tensor(backgrounds, dtype=torch.float32).view(-1, 3, 1, 1).expand(-1, 3, size, size).clone()
    )
    for layer in range(max(map(len, objects), default=0)):
        rows = [i for i, items in enumerate(objects) if len(items) > layer]
        items = [objects[i][layer] for i in rows]
        cover = _coverage(items, x, y, size, wrap)[:, None]
        paint = torch.tensor([item.rgb for item in items], dtype=torch.float32).view(-1, 3, 1, 1)
        canvas[rows] = canvas[rows] * (1 - cover) + paint * cover
    return canvas * 2 - 1


def _coverage(items: Sequence[Placed], x: Tensor, y: Tensor, size: int, wrap: bool) -> Tensor:
    def column(name: str) -> Tensor:
        return torch.tensor([float(getattr(item, name)) for item in items]).view(-1, 1, 1)

    radius, turn = column("radius"), column("rotation")
    dx, dy = x - column("x"), y - column("y")
    if wrap:
        dx, dy = (dx + 0.5) % 1 - 0.5, (dy + 0.5) % 1 - 0.5
    dx, dy = dx / radius, dy / radius
    u, v = dx * turn.cos() + dy * turn.sin(), dy * turn.cos() - dx * turn.sin()
    distance = torch.empty_like(u)
    for shape in {item.shape for item in items}:
        rows = [i for i, item in enumerate(items) if item.shape == shape]
        distance[rows] = signed_distance(shape, u[rows], v[rows])
    return (0.5 - distance * radius * size).clamp(0, 1)


def signed_distance(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Signed distance bound to a shape of unit radius, negative inside, at coordinates in radii; ``v`` points down."""
    return _DISTANCES[shape](u, v)


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 1


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.88


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    sides = torch.maximum(0.866 * u - 0.5 * v, -0.866 * u - 0.5 * v) - 0.55
    return torch.maximum(sides, v - 0.65)


def _star(u: Tensor, v: Tensor) -> Tensor:
    outer, inner = 1.12, 0.5
    fifth = math.pi / 5
    angle = (torch.atan2(u, -v) + fifth) % (2 * fifth) - fifth
    reach = torch.hypot(u, v)
    along, across = reach * angle.cos(), reach * angle.sin().abs()
    # One edge runs from the tip (outer, 0) to the notch; by symmetry it bounds the whole star.
    edge_x, edge_y = inner * math.cos(fifth) - outer, inner * math.sin(fifth)
    length = math.hypot(edge_x, edge_y)
    return ((along - outer) * edge_y - across * edge_x) / length


def _cross(u: Tensor, v: Tensor) -> Tensor:
    bar = torch.maximum(u.abs() - 1, v.abs() - 0.36)
    return torch.minimum(bar, torch.maximum(u.abs() - 0.36, v.abs() - 1))


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross}
