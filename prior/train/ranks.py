"""Communication between training ranks, which are the processes in a torch.distributed group. Does not use Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")

_BUCKET_VALUES = 8_000_000
"""Minimum number of gradient values per all-reduce (32 MB in float32).

With a larger number, the temporary copies of the gradients need more memory. With a smaller number, more messages are
sent.
"""


class PeerLost(RuntimeError):
    """Raised when a collective operation (communication between all ranks) fails because another rank died."""


@dataclass(frozen=True)
class Ranks:
    """Rank of this process, number of ranks, and communication between all ranks.

    Without a torch.distributed process group, the only rank is 0 and nothing is sent. In a group, every rank must call
    `sum`, `any`, `sum_gradients`, `gather` and `broadcast` in the same order, because each call waits for all ranks.
    """

    rank: int
    size: int
    device: torch.device
    """Device to which tensors are moved for communication."""

    @staticmethod
    def current(device: torch.device) -> Ranks:
        """Return a `Ranks` for the default torch.distributed group, or for a single rank if no group is initialised."""
        if not (dist.is_available() and dist.is_initialized()):
            return Ranks(0, 1, device)
        return Ranks(dist.get_rank(), dist.get_world_size(), device)

    @property
    def is_first(self) -> bool:
        """True on rank 0, the only rank that writes files."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the elementwise sum of `values` over all ranks, as a tensor on the CPU.

        Args:
            values: float64 tensor `[n]`. Its length n must be the same on all ranks.
        """
        if self.size == 1:
            return values.cpu()
        sent = values.to(self.device)
        _collective(lambda: dist.all_reduce(sent))
        return sent.cpu()

    def any(self, value: bool) -> bool:
        """Return True on all ranks if `value` is True on at least one rank."""
        return bool(self.sum(torch.tensor([float(value)], dtype=torch.float64)).item())

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Replace each parameter's gradient with its sum over all ranks. A gradient that is None counts as zero.

        With a single rank, do nothing.
        """
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
        """Join the lists of all ranks into one list, in rank order. Every rank returns the joined list.

        Args:
            values: picklable values of this rank. Their number may differ between ranks.
        """
        if self.size == 1:
            return values
        gathered: list[Any] = [None] * self.size
        _collective(lambda: dist.all_gather_object(gathered, values))
        return [value for rank_values in gathered for value in rank_values]

    def broadcast(
        self, value: Value | None, tensors: Mapping[str, torch.Tensor]
    ) -> tuple[Value, dict[str, torch.Tensor]]:
        """Send a value and named tensors from the first rank to all ranks. Every rank returns them, on the CPU.

        With a single rank, return the arguments unchanged.

        Args:
            value: any picklable value; ignored on all ranks except the first.
            tensors: tensors by name; ignored on all ranks except the first.
        """
        if self.size == 1:
            assert value is not None
            return value, dict(tensors)
        described = [(value, {name: (each.shape, each.dtype) for name, each in tensors.items()})]
        _collective(lambda: dist.broadcast_object_list(described, src=0))
        value, layouts = described[0]
        assert value is not None
        received = {}
        for name, (shape, dtype) in layouts.items():
            sent = tensors[name] if self.is_first else torch.empty(shape, dtype=dtype)
            sent = sent.to(self.device).contiguous()
            _collective(lambda sent=sent: dist.broadcast(sent, src=0))  # type: ignore[misc]
            received[name] = sent.cpu()
        return value, received


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Group consecutive parameters into buckets of at least `_BUCKET_VALUES` values. The last bucket may be smaller."""
    bucket: list[torch.nn.Parameter] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(each.numel() for each in bucket) >= _BUCKET_VALUES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _collective(work: Callable[[], Any]) -> None:
    """Run an operation in which all ranks communicate, such as an all-reduce.

    Args:
        work: function that performs the operation.

    Raises:
        PeerLost: the operation raises a RuntimeError, which is taken to mean that another rank died.
    """
    try:
        work()
    except RuntimeError as error:
        raise PeerLost(str(error)) from error
