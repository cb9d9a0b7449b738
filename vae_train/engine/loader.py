"""The batches of a run, as uint8 on its device.

The pictures lie on the device as one tensor. A set that would take more than half of its free memory stays in the
memory map of the cache: a thread reads the next batch into pinned memory, and a CUDA stream copies it, while the device
works on the batch before. Both ways give the same batches: order and views are functions of (seed, epoch, index).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_train.config import TrainConfig
from vae_train.engine.device import free_memory
from vae_train.engine.distributed import DistributedContext
from vae_train.engine.rng import MIRROR, ORDER, SHIFT, make_generator

MEMORY_SHARE = 0.5
"""Share of the free memory of the device that the pictures may take."""

_CHUNK = 4096


def augment(pixels: Tensor, views: Tensor) -> Tensor:
    """(n, 3, S, S), (n, 3) int64 -> (n, 3, S, S): pictures as they are seen in this epoch.

    views: whether each is mirrored (0 or 1), and by how many pixels it then moves down and to the right. What comes in
    repeats the edge.
    """
    side = pixels.shape[-1]
    places = torch.arange(side, device=pixels.device)
    mirrored, down, right = views[:, :, None].unbind(1)
    rows, columns = ((places - moved).clamp(0, side - 1) for moved in (down, right))
    columns = torch.where(mirrored == 1, side - 1 - columns, columns)
    index = (rows[:, :, None] * side + columns[:, None, :]).flatten(1)[:, None].expand(-1, pixels.shape[1], -1)
    return pixels.flatten(2).gather(2, index).view_as(pixels)


class Loader:
    """The training pictures of a source, batch by batch."""

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        chosen: NDArray[np.int64],
        config: TrainConfig,
        device: torch.device,
        context: DistributedContext,
    ) -> None:
        """pixels: (N, 3, S, S), a memory map. chosen: (n,), the indices of those to train on."""
        self.config, self.device, self.context = config, device, context
        self.source, self.chosen = torch.from_numpy(pixels), torch.from_numpy(chosen)
        self.batches = len(chosen) // config.batch_size
        """Batches an epoch; what is left over of its order is not seen in it."""
        size, limit = len(chosen) * pixels[0].nbytes, MEMORY_SHARE * free_memory(device)
        self.resident = _resident(self.source, self.chosen, device) if size <= limit else None
        place = "in memory" if device.type == "cpu" else f"on {device}"
        self.report = (
            f"{size / 1e6:.0f} MB of pictures {place}"
            if self.resident is not None
            else f"{size / 1e6:.0f} MB of pictures, more than the {limit / 1e6:.0f} MB that they may take {place}: "
            "streaming from the cache"
        )

    def epoch(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from number `first` on, this process's shard of each.

        pixels (n, 3, S, S) uint8, views (n, 3) int64, see `augment`; both on the device.
        """
        seed, size = self.config.seed, self.config.batch_size
        order = torch.randperm(len(self.chosen), generator=make_generator(seed, ORDER, epoch))
        views = torch.zeros(len(order), 3, dtype=torch.int64)
        if self.config.flip:
            views[:, 0] = torch.rand(len(order), generator=make_generator(seed, MIRROR, epoch)) < 0.5
        if most := self.config.shift:
            views[:, 1:] = torch.randint(-most, most + 1, (len(order), 2), generator=make_generator(seed, SHIFT, epoch))
        shards = [self.context.shard(order[i * size : (i + 1) * size]) for i in range(first, self.batches)]
        if self.resident is None:
            pixels = _streamed(self.source, [self.chosen[shard] for shard in shards], self.device)
        else:
            pixels = (self.resident[shard.to(self.device)] for shard in shards)
        return zip(pixels, (views[shard].to(self.device) for shard in shards), strict=True)


def _resident(source: Tensor, chosen: Tensor, device: torch.device) -> Tensor:
    resident = torch.empty((len(chosen), *source.shape[1:]), dtype=torch.uint8, device=device)
    for part, indices in zip(resident.split(_CHUNK), chosen.split(_CHUNK), strict=True):
        part.copy_(source[indices])
    return resident


def _streamed(source: Tensor, batches: list[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The pictures of each list of indices, on the device; the next batch is prefetched."""
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
        prefetched = [reader.submit(fetch, number) for number in range(min(1, len(batches)))]
        for number in range(len(batches)):
            batch = prefetched.pop().result()
            if copies is not None:
                torch.cuda.current_stream(device).wait_stream(copies)
                batch.record_stream(torch.cuda.current_stream(device))
            if number + 1 < len(batches):
                prefetched.append(reader.submit(fetch, number + 1))
            yield batch
