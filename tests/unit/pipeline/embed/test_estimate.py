"""Time and space of embedding: estimated from the CLIP and the device, then measured on shards that are complete."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest

from priorkit.pipeline.clip.encoder import clip_cost
from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.compute.speed import estimate_flops
from priorkit.pipeline.contract.commit import ShardCommit, open_stage
from priorkit.pipeline.contract.manifest import Manifest
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.estimate import estimate_bytes, estimate_seconds, measure
from priorkit.pipeline.embed.settings import EmbedSettings

SETTINGS = EmbedSettings(device="cpu", threads=1, decode_threads=2)
LARGE = ClipSettings(model="ViT-L-14", pretrained="openai")


def complete(folder: Path, shards: list[tuple[int, float, int]], settings: dict[str, int] | None = None) -> Manifest:
    """Commit shards of the given samples, seconds and bytes."""
    store, manifest = Store(str(folder)), Manifest("embed", settings or {}, {})
    with open_stage(store, manifest) as stage:
        for number, (samples, seconds, size) in enumerate(shards):
            name = f"{number:04d}"
            commit = ShardCommit(store, name, settings=stage.manifest.settings_fingerprint)
            with commit.create(f"img_emb/img_emb_{name}.npy") as file:
                file.write(bytes(size))
            commit.write_log(f"stats/stats_{name}.json", {"rows": samples, "seconds": seconds})
            stage.add(commit.commit(rows=samples - 1, counts={"success": samples - 1, "not_image": 1}))
        stage.finish()
    return stage.manifest


cost_of = functools.cache(clip_cost)


def seconds_of(settings: EmbedSettings) -> float:
    return estimate_seconds(settings, cost_of(settings.clip))


def test_an_unknown_clip_is_taken_for_a_large_one() -> None:
    large = SETTINGS.model_copy(update={"clip": LARGE})
    assert estimate_seconds(SETTINGS, None) == pytest.approx(seconds_of(large), rel=0.1)


def test_a_larger_clip_takes_longer_and_more_space() -> None:
    large = SETTINGS.model_copy(update={"clip": LARGE})
    assert seconds_of(large) > 5 * seconds_of(SETTINGS)
    assert estimate_bytes(SETTINGS) == 200 + 2 * 512 * 2
    assert estimate_bytes(large) == 200 + 2 * 768 * 2
    assert estimate_bytes(large.model_copy(update={"image": False, "token_states": True})) == 200 + 17 * 768 * 2


def test_the_time_is_the_operations_by_the_speed_of_the_device_and_the_decoding() -> None:
    cost, speed = cost_of(SETTINGS.clip), estimate_flops("cpu", "float32", 1)
    assert cost is not None
    text = cost.text_flops * 16 / 77
    assert seconds_of(SETTINGS) == pytest.approx((cost.image_flops + text) / speed + 0.003 / 2)
    assert seconds_of(SETTINGS.model_copy(update={"image": False})) == pytest.approx(text / speed)


def test_nothing_is_measured_before_the_first_shard(tmp_path: Path) -> None:
    assert measure(Store(str(tmp_path)), Manifest("embed", {}, {})) is None


def test_complete_shards_give_the_rate_and_the_size(tmp_path: Path) -> None:
    manifest = complete(tmp_path, [(10, 2.0, 400), (30, 4.0, 800)])
    found = measure(Store(str(tmp_path)), manifest)
    assert found is not None
    assert found.seconds_per_sample == pytest.approx(6 / 40)
    assert found.bytes_per_sample == pytest.approx(1200 / 40)


def test_the_rate_and_the_size_are_per_sample_and_not_per_caption(tmp_path: Path) -> None:
    manifest = complete(tmp_path, [(50, 2.0, 400)])
    manifest.shards["0000"] = dataclasses.replace(manifest.shards["0000"], samples=10)
    found = measure(Store(str(tmp_path)), manifest)
    assert found is not None
    assert (found.seconds_per_sample, found.bytes_per_sample) == (pytest.approx(0.2), pytest.approx(40))


def test_only_the_latest_shards_count(tmp_path: Path) -> None:
    manifest = complete(tmp_path, [(1, 100.0, 1)] * 4 + [(10, 1.0, 10)] * 16)
    found = measure(Store(str(tmp_path)), manifest)
    assert found is not None
    assert found.seconds_per_sample == pytest.approx(0.1)


def test_shards_of_other_settings_and_lost_logs_do_not_count(tmp_path: Path) -> None:
    manifest = complete(tmp_path, [(10, 2.0, 400), (30, 3.0, 800)])
    (tmp_path / "stats/stats_0000.json").unlink()
    found = measure(Store(str(tmp_path)), manifest)
    assert found is not None
    assert found.seconds_per_sample == pytest.approx(0.1)
    (tmp_path / "stats/stats_0001.json").write_text("{}")
    assert measure(Store(str(tmp_path)), manifest) is None
    manifest.settings = {"batch_size": 7}
    assert measure(Store(str(tmp_path)), manifest) is None
