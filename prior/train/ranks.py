"""The processes that train together, through torch.distributed where a process group is there. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")

_BUCKET_VALUES = 8_000_000
"""Gradients that are summed at once: 32 MB of float32, so that they are copied in parts and sent in few."""


class PeerLost(RuntimeError):
    """Another process of the training is gone, so that nothing can be agreed on any more."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone where there are no others."""

    rank: int
    size: int
    device: torch.device
    """Where tensors must be to be sent."""

    @staticmethod
    def found(device: torch.device) -> Ranks:
        """As torch.distributed has been set up, if it has."""
        if not (dist.is_available() and dist.is_initialized()):
            return Ranks(0, 1, device)
        return Ranks(dist.get_rank(), dist.get_world_size(), device)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of float64 values `[n]` of all ranks; on the CPU."""
        if self.size == 1:
            return values.cpu()
        sent = values.to(self.device)
        _collective(lambda: dist.all_reduce(sent))
        return sent.cpu()

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Put the sum over ranks into the gradients of some parameters; a rank that has none adds nothing."""
        if self.size == 1:
            return
        for bucket in _buckets(parameters):
            for parameter in bucket:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            _collective(lambda flat=flat: dist.all_reduce(flat))  # type: ignore[misc]
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def gather(self, values: list[Value]) -> list[Value]:
        """The values of all ranks, in their order."""
        if self.size == 1:
            return values
        gathered: list[Any] = [None] * self.size
        _collective(lambda: dist.all_gather_object(gathered, values))
        return [value for of_rank in gathered for value in of_rank]

    def broadcast(
        self, value: Value | None, tensors: Mapping[str, torch.Tensor]
    ) -> tuple[Value, dict[str, torch.Tensor]]:
        """What the first rank has: a plain value, and tensors by name, which come to lie on the CPU.

        Args:
            value, tensors: of the first rank; what others give is of no matter.
        """
        if self.size == 1:
            assert value is not None
            return value, dict(tensors)
        described = [(value, {name: (each.shape, each.dtype) for name, each in tensors.items()})]
        _collective(lambda: dist.broadcast_object_list(described, src=0))
        value, kinds = described[0]
        assert value is not None
        received = {}
        for name, (shape, dtype) in kinds.items():
            sent = tensors[name] if self.is_first else torch.empty(shape, dtype=dtype)
            sent = sent.to(self.device).contiguous()
            _collective(lambda sent=sent: dist.broadcast(sent, src=0))  # type: ignore[misc]
            received[name] = sent.cpu()
        return value, received


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(each.numel() for each in bucket) >= _BUCKET_VALUES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _collective(work: Callable[[], Any]) -> None:
    try:
        work()
    except RuntimeError as error:
        raise PeerLost(str(error)) from error
