"""Augmentation: what it leaves alone, what it changes, and that it is drawn anew for every image and step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metazoo.nn.augmentation import AUGMENTATIONS, augmented, drawing, photo
from metazoo.tasks.episode import Batch, Episode


def strokes(count: int = 64, size: int = 28) -> Tensor:
    """Return the same drawing many times: a cross with one long arm, ink 1 on 0."""
    x = torch.zeros(1, size, size)
    x[0, 6:22, 12:14] = 1
    x[0, 9:11, 8:20] = 1
    return x.expand(count, -1, -1, -1).contiguous()


def centre(x: Tensor) -> Tensor:
    """Return the mean position of ink, (N, 2) as row and column."""
    rows, columns = (torch.arange(size, dtype=x.dtype) for size in x.shape[2:])
    ink = x.sum((1, 2, 3))
    return torch.stack(
        [(x.sum((1, 3)) * rows).sum(1) / ink, (x.sum((1, 2)) * columns).sum(1) / ink], 1
    )


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_images(name: str, channels: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(5, channels, 24, 20)
    y = AUGMENTATIONS[name](x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.min() >= -1e-6
    assert y.max() <= 1 + 1e-6
    assert (
        len(
            {
                tuple(image.flatten().tolist())
                for image in AUGMENTATIONS[name](x[:1].expand(5, -1, -1, -1))
            }
        )
        == 5
    )


def test_a_drawing_moves_and_keeps_most_of_its_ink() -> None:
    torch.manual_seed(0)
    x = strokes()
    y = drawing(x)
    ink = y.sum((1, 2, 3)) / x.sum((1, 2, 3))
    assert ink.min() > 0.5
    assert ink.max() < 1.8
    shift = centre(y) - centre(x)
    assert shift.abs().max() < 6
    assert (shift.std(0) > 0.5).all()
    assert shift.mean(0).abs().max() < 0.6  # in no direction more than in another


def test_a_drawing_is_never_mirrored() -> None:
    """What is right of the stem stays right of it."""
    torch.manual_seed(0)
    x = strokes()
    x[:, :, 9:11, :12] = 0  # one arm alone, to the right
    y = drawing(x)
    upper, lower = y[:, :, :14], y[:, :, 14:]
    assert (centre(upper)[:, 1] > centre(lower)[:, 1]).float().mean() > 0.85


def test_a_drawing_stays_as_sharp_as_it_was() -> None:
    """As much full ink, as few grey pixels and edges as steep, where interpolation alone leaves a third of the full ink."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    ring = (1.5 - ((rows - 13.3).hypot(columns - 13.8) - 7).abs()).clamp(
        0, 1
    )  # a stroke of two pixels with grey edges
    x = ring.expand(200, 1, 28, 28)
    y = drawing(x)
    full = [(image > 0.9).float().mean() for image in (x, y)]
    assert 0.88 < full[1] / full[0] < 1.1
    edges = [(image[..., 1:] - image[..., :-1]).abs().mean() for image in (x, y)]
    assert 0.97 < edges[1] / edges[0] < 1.08


def test_half_of_the_photographs_are_mirrored() -> None:
    torch.manual_seed(0)
    x = torch.linspace(0, 0.5, 24).expand(200, 3, 24, 24)  # brighter to the right
    y = photo(x)
    rising = (y[:, :, :, -4:].mean((1, 2, 3)) > y[:, :, :, :4].mean((1, 2, 3))).float().mean()
    assert 0.4 < rising < 0.6


def test_photographs_differ_in_brightness_and_saturation() -> None:
    torch.manual_seed(0)
    x = torch.tensor([0.5, 0.3, 0.1]).view(1, 3, 1, 1).expand(100, 3, 16, 16)
    y = photo(x)
    assert y.mean((1, 2, 3)).std() > 0.03
    assert (y[:, 0] - y[:, 2]).mean((1, 2)).std() > 0.03


def test_a_task_is_augmented_whole_and_its_labels_kept() -> None:
    torch.manual_seed(0)
    task = Episode(
        strokes(6).view(2, 3, 1, 28, 28),
        torch.arange(3).expand(2, 3),
        strokes(8).view(2, 4, 1, 28, 28),
        torch.zeros(2, 4),
    )
    assert augmented(task, "none") is task
    changed = augmented(task, "drawing")
    assert isinstance(changed, Episode)
    assert changed.support_y is task.support_y
    assert changed.query_y is task.query_y
    assert (changed.support_x.shape, changed.query_x.shape) == (
        task.support_x.shape,
        task.query_x.shape,
    )
    images = torch.cat([changed.support_x.flatten(0, 1), changed.query_x.flatten(0, 1)])
    assert len({tuple(image.flatten().tolist()) for image in images}) == 14


def test_a_batch_is_augmented() -> None:
    batch = Batch(strokes(4), torch.arange(4))
    torch.manual_seed(0)
    once = augmented(batch, "drawing")
    torch.manual_seed(0)
    again = augmented(batch, "drawing")
    assert torch.equal(once.x, again.x)
    assert not torch.equal(once.x, batch.x)
    assert once.y is batch.y
