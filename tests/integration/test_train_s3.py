"""Train from S3, with checkpoints on S3, against a local server that speaks its protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from priorkit.pipeline.contract.lock import LEASE_NAME
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.interchange.load import load_prior
from priorkit.prior.train.stage import train

from .conftest import upload
from .synthetic import SMALL_TRAIN, changed, write_embeddings

READ = ReadSettings(validation_fraction=0.1)


@pytest.mark.slow
def test_the_same_prior_as_locally_stopped_and_gone_on_with(bucket: str, tmp_path: Path) -> None:
    local, remote = tmp_path / "prior", f"{bucket}/prior"
    embeddings = write_embeddings(tmp_path / "embeddings", token_states=True)
    upload(embeddings, f"{bucket}/embeddings")
    settings = changed(SMALL_TRAIN, network__max_text_len=3)
    train(str(embeddings), str(local), settings, READ)
    for limit, done in ((11, 11), (None, 19)):
        result = train(f"{bucket}/embeddings", remote, settings, READ, limit=limit)
        assert (result.folder, result.done_now) == (remote, done)
    store = Store(remote)
    states = [path.relative_to(local).as_posix() for path in (local / "state").iterdir()]
    for name in ("metrics.jsonl", "model.safetensors", "best.safetensors", "config.json", *states):
        with store.open(name) as file:
            assert file.read() == (local / name).read_bytes(), name
    assert store.size(LEASE_NAME) is None
    for weights in ("ema", "online", "best"):
        assert load_prior(remote, weights=weights).config == load_prior(str(local)).config  # type: ignore[arg-type]
    assert train(f"{bucket}/embeddings", remote, settings, READ).done_now == 0
