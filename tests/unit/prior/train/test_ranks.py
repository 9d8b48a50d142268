"""Collective operations, on one rank and on two ranks in separate processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from priorkit.prior.train import ranks as module
from priorkit.prior.train.ranks import PeerLost, Ranks

CPU = torch.device("cpu")


def test_without_a_process_group_there_is_one_rank() -> None:
    ranks = Ranks.current(CPU)
    assert (ranks.rank, ranks.size, ranks.is_first) == (0, 1, True)
    assert not Ranks(1, 2, CPU).is_first


def test_one_rank_keeps_its_values() -> None:
    ranks = Ranks(0, 1, CPU)
    assert ranks.sum(torch.tensor([1.5, -2.0])).tolist() == [1.5, -2.0]
    assert (ranks.any(True), ranks.any(False)) == (True, False)
    assert ranks.gather([3, 1]) == [3, 1]
    value, tensors = ranks.broadcast(7, {"a": torch.ones(2)})
    assert (value, tensors["a"].tolist()) == (7, [1.0, 1.0])


def run_rank(rank: int, meeting: str, output: str) -> None:
    """Run every operation on one of two ranks and write the results."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    ranks = Ranks.current(CPU)
    module._BUCKET_VALUES = 3
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (1,), (3,))]
    parameters[0].grad = torch.full((2, 2), 1.0 + rank)
    if rank == 1:
        parameters[1].grad = torch.tensor([5.0])
    parameters[2].grad = torch.tensor([1.0, 2.0, 3.0]) * (10 if rank else 1)
    ranks.sum_gradients(parameters)
    gradients = [parameter.grad.tolist() for parameter in parameters if parameter.grad is not None]
    sent = {"half": torch.tensor([[1.0, 2.0]], dtype=torch.float16), "count": torch.tensor(4)}
    value, tensors = ranks.broadcast(*((9, sent) if rank == 0 else (None, {})))
    results = {
        "sum": ranks.sum(torch.tensor([1.0, float(rank)], dtype=torch.float64)).tolist(),
        "any": [ranks.any(False), ranks.any(rank == 1), ranks.any(True)],
        "gather": ranks.gather([rank, 10 + rank] if rank else [rank]),
        "gradients": gradients,
        "value": value,
        "tensors": {name: [str(each.dtype), each.tolist()] for name, each in tensors.items()},
    }
    Path(f"{output}{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def test_two_ranks_agree(tmp_path: Path) -> None:
    arguments = (str(tmp_path / "meeting"), str(tmp_path / "rank"))
    torch.multiprocessing.start_processes(run_rank, arguments, nprocs=2, start_method="fork")
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first == {
        "sum": [2.0, 1.0],
        "any": [False, True, True],
        "gather": [0, 1, 11],
        "gradients": [[[3.0, 3.0], [3.0, 3.0]], [5.0], [11.0, 22.0, 33.0]],
        "value": 9,
        "tensors": {"half": ["torch.float16", [[1.0, 2.0]]], "count": ["torch.int64", 4]},
    }


def test_buckets_end_once_they_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUCKET_VALUES", 5)
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (2, 2, 1, 9, 4)]
    buckets = list(module._buckets(parameters))
    assert [[each.numel() for each in bucket] for bucket in buckets] == [[2, 2, 1], [9], [4]]


def test_a_failed_operation_means_a_lost_peer() -> None:
    def fail() -> None:
        raise RuntimeError("connection reset")

    with pytest.raises(PeerLost, match="connection reset"):
        module._collective(fail)
