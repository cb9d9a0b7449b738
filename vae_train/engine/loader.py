"""The batches of a run, as uint8 on its device.

The pictures lie on the device as one tensor. A set that would take more than half of its free memory stays in the
memory map of the cache: one thread reads the next batch into pinned memory, and one stream copies it, while the device
works on the batch before. Both ways give the same batches: order and views are functions of (seed, epoch, index).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_train.config import TrainConfig
from vae_train.engine.distributed import World

MEMORY_SHARE = 0.5
"""Share of the free memory of the device that the pictures may take."""

_CHUNK = 4096
_CGROUP = Path("/sys/fs/cgroup")

# Measured on 2 cores (torch 2.13, fp32, classic, batch 128): 1.7 times the images a second of the default layout.
CHANNELS_LAST = torch.channels_last

ORDER, NOISE, HELD_OUT, MIRROR, KERNELS, SHIFT = range(6)
"""The purposes of random numbers."""


def stream(seed: int, purpose: int, index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one purpose at one index: no state to save, nothing to get out of step."""
    mixed = np.random.SeedSequence([seed, purpose, index]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed >> 1))


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 (n, 3, S, S) -> float32 in [0, 1], channels last"""
    return (pixels.float() / 255).contiguous(memory_format=CHANNELS_LAST)


def augment(pixels: Tensor, views: Tensor) -> Tensor:
    """(n, 3, S, S), (n, 3) int64 -> (n, 3, S, S): pictures as they are seen in this epoch.

    views: whether each is mirrored (0 or 1), and by how many pixels it then moves down and to the right. What comes in
    at an edge repeats it.
    """
    side = pixels.shape[-1]
    places = torch.arange(side, device=pixels.device)
    mirrored, down, right = views[:, :, None].unbind(1)
    rows, columns = ((places - moved).clamp(0, side - 1) for moved in (down, right))
    columns = torch.where(mirrored == 1, side - 1 - columns, columns)
    index = (rows[:, :, None] * side + columns[:, None, :]).flatten(1)[:, None].expand(-1, pixels.shape[1], -1)
    return pixels.flatten(2).gather(2, index).view_as(pixels)


class Feed:
    """The training pictures of a source, batch by batch."""

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        chosen: NDArray[np.int64],
        config: TrainConfig,
        device: torch.device,
        world: World,
    ) -> None:
        """pixels: (N, 3, S, S), a memory map. chosen: (n,), the indices of those to train on."""
        self.config, self.device, self.world = config, device, world
        self.source, self.chosen = torch.from_numpy(pixels), torch.from_numpy(chosen)
        self.batches = len(chosen) // config.batch_size
        """Batches an epoch; what is left over of its order is not seen in it."""
        size, self.room = len(chosen) * pixels[0].nbytes, MEMORY_SHARE * free_memory(device)
        self.resident = _resident(self.source, self.chosen, device) if size <= self.room else None
        place = "in memory" if device.type == "cpu" else f"on {device}"
        self.report = (
            f"{size / 1e6:.0f} MB of pictures {place}"
            if self.resident is not None
            else f"{size / 1e6:.0f} MB of pictures, more than the {self.room / 1e6:.0f} MB that they may take {place}: "
            "streaming from the cache"
        )

    def epoch(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from number `first` on, this process's share of each.

        pixels (n, 3, S, S) uint8, views (n, 3) int64, see `augment`; both on the device.
        """
        seed, size = self.config.seed, self.config.batch_size
        order = torch.randperm(len(self.chosen), generator=stream(seed, ORDER, epoch))
        views = torch.zeros(len(order), 3, dtype=torch.int64)
        if self.config.flip:
            views[:, 0] = torch.rand(len(order), generator=stream(seed, MIRROR, epoch)) < 0.5
        if most := self.config.shift:
            views[:, 1:] = torch.randint(-most, most + 1, (len(order), 2), generator=stream(seed, SHIFT, epoch))
        shares = [self.world.share(order[i * size : (i + 1) * size]) for i in range(first, self.batches)]
        if self.resident is None:
            pixels = _streamed(self.source, [self.chosen[share] for share in shares], self.device)
        else:
            pixels = (self.resident[share.to(self.device)] for share in shares)
        return zip(pixels, (views[share].to(self.device) for share in shares), strict=True)


def _resident(source: Tensor, chosen: Tensor, device: torch.device) -> Tensor:
    resident = torch.empty((len(chosen), *source.shape[1:]), dtype=torch.uint8, device=device)
    for part, indices in zip(resident.split(_CHUNK), chosen.split(_CHUNK), strict=True):
        part.copy_(source[indices])
    return resident


def _streamed(source: Tensor, batches: list[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The pictures of each list of indices, on the device; the next batch is read and copied ahead."""
    on_gpu = device.type == "cuda"
    size = max(map(len, batches), default=0)
    buffers = [torch.empty((size, *source.shape[1:]), dtype=torch.uint8, pin_memory=on_gpu) for _ in range(2)]
    copies = torch.cuda.Stream(device) if on_gpu else None
    copied: list[torch.Event | None] = [None, None]

    def fetch(number: int) -> Tensor:
        buffer, before = buffers[number % 2][: len(batches[number])], copied[number % 2]
        if before is not None:
            before.synchronize()
        torch.index_select(source, 0, batches[number], out=buffer)
        if copies is None:
            return buffer
        with torch.cuda.stream(copies):
            batch = buffer.to(device, non_blocking=True)
            copied[number % 2] = copies.record_event()
        return batch

    with ThreadPoolExecutor(1) as reader:
        ahead = [reader.submit(fetch, number) for number in range(min(1, len(batches)))]
        for number in range(len(batches)):
            batch = ahead.pop().result()
            if copies is not None:
                torch.cuda.current_stream(device).wait_stream(copies)
                batch.record_stream(torch.cuda.current_stream(device))
            if number + 1 < len(batches):
                ahead.append(reader.submit(fetch, number + 1))
            yield batch


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a GPU, or for this process on the machine, by its control group too."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = float(psutil.virtual_memory().available)
    try:
        limit, used = ((_CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        return min(free, float(limit) - float(used))
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        return free
