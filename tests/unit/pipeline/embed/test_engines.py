"""The native engine: rows in order, in windows, and samples that cannot be embedded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from priorkit.pipeline.clip.encoder import load_encoder
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.engines import EmbedTask, Failure, NativeEngine, Window
from priorkit.pipeline.embed.settings import EmbedSettings

from .conftest import png, shards_of, write

COLOURS = ("red", "green", "blue", "white", "black")


def run(folder: Path, settings: EmbedSettings, limit: int | None = None, **changed: Any) -> Iterator[Window | Failure]:
    settings = settings.model_copy(update=changed)
    (shard,) = shards_of(folder, image=settings.image, text=settings.text)
    engine = NativeEngine(Store(str(folder)), settings, load_encoder(settings.encoder_settings()))
    yield from engine.windows(EmbedTask(shard, "", limit), None)
    engine.close()


def test_rows_are_in_order_and_each_has_its_own_embedding(tmp_path: Path, embed_settings: EmbedSettings) -> None:
    files = {f"{number}.png": png(colour) for number, colour in enumerate(COLOURS)}
    captions = {f"{number}.txt": f"a {'very ' * (5 - number)}{c} square".encode() for number, c in enumerate(COLOURS)}
    (window,) = run(write(tmp_path, {**files, **captions}), embed_settings, batch_size=2)
    assert isinstance(window, Window)
    assert window.keys == ["0", "1", "2", "3", "4"]
    assert [place.position for place in window.places] == [0, 1, 2, 3, 4]
    assert window.captions == [caption.decode() for caption in captions.values()]
    encoder = load_encoder(embed_settings.encoder_settings())
    images = torch.cat([encoder.encode_images([encoder.decode(data)]) for data in files.values()])
    assert window.image_embed is not None
    torch.testing.assert_close(window.image_embed, images, rtol=1e-4, atol=1e-5)
    texts = [encoder.encode_texts([caption], token_states=True) for caption in window.captions]
    assert window.text is not None
    torch.testing.assert_close(window.text.text_embed, torch.cat([t.text_embed for t in texts]), rtol=1e-4, atol=1e-5)
    assert window.text.lengths == [length for text in texts for length in text.lengths]


def test_a_window_has_sixteen_batches(tmp_path: Path, embed_settings: EmbedSettings) -> None:
    folder = write(tmp_path, {f"{number:02d}.txt": b"a" for number in range(35)})
    windows = [part for part in run(folder, embed_settings, image=False, batch_size=1) if isinstance(part, Window)]
    assert [len(window.keys) for window in windows] == [16, 16, 3]
    assert [key for window in windows for key in window.keys] == [f"{number:02d}" for number in range(35)]
    assert all(window.image_embed is None for window in windows)


def test_a_limit_counts_samples_and_not_rows(tmp_path: Path, embed_settings: EmbedSettings) -> None:
    folder = write(tmp_path, {"a.txt": b"\xff", "b.txt": b"b", "c.txt": b"c"})
    failure, window = run(folder, embed_settings, 2, image=False)
    assert isinstance(failure, Failure)
    assert isinstance(window, Window)
    assert (failure.key, failure.place.position) == ("a", 0)
    assert (window.keys, window.places[0].position) == (["b"], 1)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.png": png("red")}, "missing_caption: the sample has .png; "),
        ({"a.txt": b"a", "b.png": png("red"), "b.txt": b"b"}, "missing_image: the sample has .txt; "),
        ({"a.png": png("red"), "a.txt": b"\xff"}, "caption_not_utf8: 'utf-8' codec"),
        ({"a.png": b"none", "a.txt": b"a"}, "image_decode: no image of a known kind"),
    ],
)
def test_a_sample_that_cannot_be_embedded_is_a_failure(
    files: dict[str, bytes], reason: str, tmp_path: Path, embed_settings: EmbedSettings
) -> None:
    failures = [part for part in run(write(tmp_path, files), embed_settings) if isinstance(part, Failure)]
    assert [failure.key for failure in failures] == ["a"]
    assert failures[0].reason.startswith(reason)


def test_bad_captions_do_not_matter_if_only_images_are_embedded(tmp_path: Path, embed_settings: EmbedSettings) -> None:
    folder = write(tmp_path, {"a.png": png("red"), "a.txt": b"\xff", "b.png": png("red")})
    (window,) = run(folder, embed_settings, text=False, token_states=False)
    assert isinstance(window, Window)
    assert (window.keys, window.captions, window.text) == (["a", "b"], ["", ""], None)


def test_an_embedding_shard_has_the_number_of_its_input(tmp_path: Path) -> None:
    (shard,) = shards_of(write(tmp_path, {"a.txt": b"a"}), image=False)
    assert EmbedTask(shard, "", None).name == "0000"


def test_an_image_with_several_captions_is_embedded_once(tmp_path: Path, embed_settings: EmbedSettings) -> None:
    files = {f"{number}.png": png(colour) for number, colour in enumerate(COLOURS[:3])}
    files["0.json"], files["1.json"] = b'{"c": ["a red square", "red"]}', b'{"c": "a green square"}'
    files["2.json"] = b'{"c": ["blue", "a blue square", "sky"]}'
    settings = embed_settings.model_copy(update={"caption_key": "c", "batch_size": 2})
    (shard,) = shards_of(write(tmp_path, files), caption_key="c")
    encoder, decoded = load_encoder(settings.encoder_settings()), []
    decode = encoder.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "decode", lambda data: decoded.append(data) or decode(data))
        engine = NativeEngine(Store(str(tmp_path)), settings, encoder)
        (window,) = engine.windows(EmbedTask(shard, "", None), None)
        engine.close()
    assert isinstance(window, Window)
    assert window.keys == ["0", "0", "1", "2", "2", "2"]
    assert [place.position for place in window.places] == [0, 0, 1, 2, 2, 2]
    assert window.captions == ["a red square", "red", "a green square", "blue", "a blue square", "sky"]
    assert window.image_embed is not None
    assert window.text is not None
    assert len(decoded) == 3
    assert len(window.text.text_embed) == len(window.image_embed) == 6
    for row, first in enumerate((0, 0, 2, 3, 3, 3)):
        assert torch.equal(window.image_embed[row], window.image_embed[first])
    assert not torch.equal(window.image_embed[0], window.image_embed[2])
