"""The engine clip-retrieval on the installed package: refused settings, and samples of any input in windows."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from priorkit.pipeline.clip.encoder import load_encoder
from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed import clip_retrieval
from priorkit.pipeline.embed.clip_retrieval import ClipRetrievalEngine, check_settings
from priorkit.pipeline.embed.engines import EmbedTask, Failure, NativeEngine, Window
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.errors import SettingsError

from .conftest import png, shards_of, write

COLOURS = ("red", "green", "blue", "white", "black")
PICTURES = {f"{number}.png": png(colour) for number, colour in enumerate(COLOURS)}
CAPTIONS = {f"{number}.txt": f"a {colour} square".encode() for number, colour in enumerate(COLOURS)}


def settings_of(**changed: Any) -> EmbedSettings:
    clip = ClipSettings(model="ViT-S-32-alt", pretrained="weights.pt")
    return EmbedSettings(**{"clip": clip, "engine": "clip-retrieval", "device": "cpu", "threads": 1, **changed})


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"dtype": "bfloat16"}, r"embed\.dtype=bfloat16: .* only do embed\.dtype=float32"),
        ({"token_states": True}, r"embed\.token_states=True: .* only do embed\.token_states=False"),
        ({"compile": True}, r"embed\.compile=True: .* only do embed\.compile=False"),
        ({"device": "cuda"}, r"embed\.device=cuda: .* only do embed\.device=cpu"),
        ({"decode_threads": 2}, r"embed\.decode_threads=2: .* one thread; leave embed\.decode_threads out"),
    ],
)
def test_an_unsupported_setting_is_named(changed: dict[str, Any], named: str) -> None:
    check_settings(settings_of())
    with pytest.raises(SettingsError, match=named):
        check_settings(settings_of(**changed))


def test_settings_of_the_input_and_of_the_clip_are_accepted() -> None:
    check_settings(settings_of(rows_per_shard=10, input_format="files", caption_column="text", batch_size=3))
    for clip in (
        ClipSettings(model="hf-hub:org/name"),
        ClipSettings(model="priorkit:demo"),
        ClipSettings(pretrained="openai", quick_gelu=True),
    ):
        check_settings(settings_of(clip=clip))


@pytest.mark.parametrize(("bf16", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_the_dtype_on_a_gpu_is_the_one_of_clip_retrieval(
    bf16: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: bf16)
    check_settings(settings_of(device="cuda", dtype=dtype))
    with pytest.raises(SettingsError, match=rf"embed\.dtype=float32: .* only do embed\.dtype={dtype}"):
        check_settings(settings_of(device="cuda"))
    with pytest.raises(SettingsError, match=r"embed\.device=cpu"):
        check_settings(settings_of(dtype=dtype))


def run(folder: Path, tiny_clip: Path, limit: int | None = None, **changed: Any) -> list[Window | Failure]:
    settings = settings_of(clip=ClipSettings(model=f"local-dir:{tiny_clip}"), batch_size=2, **changed)
    (shard,) = shards_of(folder, image=settings.image, text=settings.text)
    engine = ClipRetrievalEngine(Store(str(folder)), settings, load_encoder(settings.encoder_settings()))
    return list(engine.windows(EmbedTask(shard, "", limit), None))


def test_rows_are_in_order_and_each_has_its_own_embedding(tmp_path: Path, tiny_clip: Path) -> None:
    (window,) = run(write(tmp_path, {**PICTURES, **CAPTIONS}), tiny_clip)
    assert isinstance(window, Window)
    assert (window.keys, window.normalised) == (["0", "1", "2", "3", "4"], True)
    assert [place.position for place in window.places] == [0, 1, 2, 3, 4]
    assert window.captions == [caption.decode() for caption in CAPTIONS.values()]
    encoder = load_encoder(settings_of(clip=ClipSettings(model=f"local-dir:{tiny_clip}")).encoder_settings())
    image = encoder.encode_images([encoder.decode(data) for data in PICTURES.values()])
    text = encoder.encode_texts(window.captions).text_embed
    assert window.image_embed is not None
    assert window.text is not None
    for made, expected in ((window.image_embed, image), (window.text.text_embed, text)):
        assert made.dtype == torch.float16
        similarities = torch.cosine_similarity(expected[:, None], made[None].float(), dim=-1)
        assert similarities.diagonal().min() >= 0.9999
        assert similarities.argmax(1).tolist() == [0, 1, 2, 3, 4]


def test_an_image_with_several_captions_gives_a_row_for_each(tmp_path: Path, tiny_clip: Path) -> None:
    files = {name: PICTURES[name] for name in ("0.png", "1.png", "2.png")}
    files["0.json"], files["1.json"] = b'{"c": ["a red square", "red"]}', b'{"c": "a green square"}'
    files["2.json"] = b'{"c": ["blue", "a blue square", "sky"]}'
    folder = write(tmp_path, files)
    settings = settings_of(
        clip=ClipSettings(model=f"local-dir:{tiny_clip}"), batch_size=2, caption_key="c", engine="native"
    )
    (shard,) = shards_of(folder, caption_key="c")
    encoder, task = load_encoder(settings.encoder_settings()), EmbedTask(shard, "", None)
    native = NativeEngine(Store(str(folder)), settings, encoder)
    (expected,) = native.windows(task, None)
    native.close()
    (window,) = ClipRetrievalEngine(Store(str(folder)), settings, encoder).windows(task, None)
    assert isinstance(window, Window)
    assert isinstance(expected, Window)
    assert window.captions == ["a red square", "red", "a green square", "blue", "a blue square", "sky"]
    assert (window.keys, window.places, window.captions) == (expected.keys, expected.places, expected.captions)
    assert window.image_embed is not None
    assert window.text is not None
    assert expected.image_embed is not None
    assert expected.text is not None
    for made, other in (
        (window.image_embed, expected.image_embed),
        (window.text.text_embed, expected.text.text_embed),
    ):
        assert torch.cosine_similarity(made.float(), other.float()).min() >= 0.9999


def test_a_long_shard_is_embedded_in_parts(tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_retrieval, "_PART_SAMPLES", 3)  # less than 2 batches of 2
    windows = run(write(tmp_path, CAPTIONS), tiny_clip, image=False)
    assert [window.keys for window in windows if isinstance(window, Window)] == [["0", "1"], ["2", "3"], ["4"]]
    assert [place.position for part in windows if isinstance(part, Window) for place in part.places] == [0, 1, 2, 3, 4]
    assert list(windows[0].image_embed or []) == []  # type: ignore[union-attr]


def test_every_sample_is_a_row_or_a_failure_with_the_reason_of_the_native_engine(
    tmp_path: Path, tiny_clip: Path
) -> None:
    thin = io.BytesIO()
    Image.new("RGB", (1, 200_000)).save(thin, "PNG")
    files = {**PICTURES, **CAPTIONS, "1.png": png("red")[:-30], "2.png": b"<html>", "3.txt": "é".encode("latin-1")}
    files |= {"5.png": thin.getvalue(), "5.txt": b"thin", "6.png": PICTURES["0.png"]}
    *failures, window = run(write(tmp_path, files), tiny_clip)
    assert [(f.key, f.reason.partition(":")[0], f.place.position) for f in failures if isinstance(f, Failure)] == [
        ("1", "image_decode", 1), ("2", "image_decode", 2), ("3", "caption_not_utf8", 3), ("5", "image_too_thin", 5),
        ("6", "missing_caption", 6),
    ]  # fmt: skip
    assert isinstance(window, Window)
    assert window.keys == ["0", "4"]


def test_a_limit_counts_samples_and_not_rows(tmp_path: Path, tiny_clip: Path) -> None:
    folder = write(tmp_path, {"a.txt": b"\xff", "b.txt": b"b", "c.txt": b"c"})
    failure, window = run(folder, tiny_clip, 2, image=False)
    assert isinstance(failure, Failure)
    assert isinstance(window, Window)
    assert (failure.key, window.keys, window.places[0].position) == ("a", ["b"], 1)


def test_samples_without_any_row_give_failures_alone(tmp_path: Path, tiny_clip: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the reader warns about each sample
        (failure,) = run(write(tmp_path, {"a.png": png("red")[:-30], "a.txt": b"a"}), tiny_clip)
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("image_decode: ")
