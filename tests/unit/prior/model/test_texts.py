"""Sources of texts: each yields all its texts in order, or names the problem."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.model.prior import Prior
from priorkit.prior.model.texts import CaptionFile, Captions, StoredArray, StoredEmbeddings, Texts, stored_texts
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings


def make_prior(max_text_len: int = 0, text_dim: int | None = None, clip: dict[str, Any] | None = None) -> Prior:
    """A prior for embeddings of size 16, without a CLIP."""
    config = PriorConfig(
        embed_dim=16,
        text_dim=text_dim,
        token_width=16 if max_text_len else None,
        network=NetworkSettings(width=16, depth=1, heads=2, dim_head=8, max_text_len=max_text_len),
        diffusion=DiffusionSettings(timesteps=10),
        clip=clip or {},
        clip_settings={},
    )
    return Prior(config, build_network(config), build_normaliser(config))


class Counting(Prior):
    """Encodes captions as their lengths, and records the batches."""

    def __init__(self) -> None:
        other = make_prior()
        super().__init__(other.config, other.network, other.normaliser)
        self.encoded: list[list[str]] = []

    def encode_text(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.encoded.append(prompts)
        return torch.tensor([[float(len(prompt))] * 16 for prompt in prompts]), None


def labels(texts: Texts, size: int = 2) -> list[str]:
    prior = Counting()
    found = [label for batch in texts.batches(prior, size) for label in batch.labels]
    assert [prompt for batch in prior.encoded for prompt in batch] == found
    assert all(len(batch) <= size for batch in prior.encoded)
    return found


def test_captions() -> None:
    captions = ["a", "", "a", "\x1b[2J", "ü"]
    assert labels(Captions(captions)) == captions
    assert Captions(captions).count == 5
    batch = next(iter(Captions(["abc"]).batches(Counting(), 5)))
    assert torch.equal(batch.text_embed, torch.full((1, 16), 3.0))


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a cat\na dog\n", ["a cat", "a dog"]),
        (b"a cat\na dog", ["a cat", "a dog"]),
        (b"a cat\r\na dog\r\n", ["a cat", "a dog"]),
        (b"a cat\ra dog", ["a cat", "a dog"]),
        (b"\xef\xbb\xbfa cat\r\na dog", ["a cat", "a dog"]),
        (b"a cat\n\n\na dog\n\n", ["a cat", "", "", "a dog", ""]),
        (b"", []),
        (b"\xef\xbb\xbf", []),
        (b"\n", [""]),
        (b"  a cat \t\n", ["  a cat \t"]),
        ("größe 猫 \U0001f469\u200d\U0001f467\n".encode(), ["größe 猫 \U0001f469\u200d\U0001f467"]),
        ("a\x0bb\x0cc\x1cd\u2028e\x85f\n".encode(), ["a\x0bb\x0cc\x1cd\u2028e\x85f"]),  # what str.splitlines would cut
        (b"a\x00b\n\x1b[2J\n", ["a\x00b", "\x1b[2J"]),
        (b"\xc3\xa9" * 20_000 + b"\n", ["é" * 20_000]),
    ],
)
def test_each_line_of_a_file_is_a_caption(data: bytes, lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    fsspec.filesystem("memory").pipe("/a.txt", data)
    for path in (str(tmp_path / "a.txt"), "memory://a.txt"):
        texts = CaptionFile(path)
        assert texts.count == len(lines)
        for size in (1, 2, 100):
            assert labels(texts, size) == lines


@pytest.mark.parametrize("data", [b"a cat\n\xff\xfea\x00", b"caf\xe9\n", "a cat".encode("utf-16")])
def test_a_file_that_is_not_utf_8_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(InputError, match=r"--prompts .*a\.txt: not UTF-8 text \("):
        CaptionFile(str(tmp_path / "a.txt"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("a.txt", "no/a.txt", "file/a.txt", ""):
        with pytest.raises(InputError, match=r"--prompts .*: no such file"):
            CaptionFile(f"{tmp_path}/{path}")
    with pytest.raises(InputError, match=r"--prompts memory://no/a\.txt: no such file"):
        CaptionFile("memory://no/a.txt")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="read twice, so a pipe will not do"):
        CaptionFile(str(tmp_path / "pipe"))


@pytest.mark.parametrize(("data", "number"), [(b"a\n", 1), (b"a\nb\nc\nd\n", 4), (b"", 0)])
def test_a_file_that_changes_while_it_is_read_is_named(data: bytes, number: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\nb\nc\n")
    texts = CaptionFile(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_bytes(data)
    seen: list[str] = []

    def read() -> None:
        for batch in texts.batches(Counting(), 1):
            seen.extend(batch.labels)

    with pytest.raises(InputError, match=rf"a\.txt: changed while it was read: 3 lines, then {number}"):
        read()
    assert len(seen) <= 3


def test_a_large_file_is_not_loaded_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("w") as file:
        file.writelines("a caption\n" for _ in range(100_000))
    batches = CaptionFile(str(tmp_path / "a.txt")).batches(Counting(), 10)
    assert isinstance(batches, Iterator)
    assert next(batches).labels == ["a caption"] * 10  # before the rest is read


def save(path: str, array: Any) -> str:
    data = io.BytesIO()
    np.save(data, array)
    with fsspec.open(path, "wb") as file:
        file.write(data.getvalue())
    return path


EMBEDS = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)


@pytest.mark.parametrize("url", ["memory://t/a.npy", "{tmp}/a.npy", "file://{tmp}/a.npy"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8"])
def test_an_array_is_read_in_order(url: str, dtype: str, tmp_path: Path) -> None:
    texts = stored_texts(save(url.format(tmp=tmp_path), EMBEDS.astype(dtype)))
    assert isinstance(texts, StoredArray)
    assert texts.count == 5
    batches = list(texts.batches(make_prior(), 2))
    assert [batch.labels for batch in batches] == [["row 0", "row 1"], ["row 2", "row 3"], ["row 4"]]
    assert [batch.token_states for batch in batches] == [None] * 3
    found = torch.cat([batch.text_embed for batch in batches])
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(EMBEDS.astype(dtype).astype(np.float32)))


def test_arrays_in_fortran_order_and_empty_arrays_are_read(tmp_path: Path) -> None:
    texts = StoredArray(save(f"{tmp_path}/a.npy", np.asfortranarray(EMBEDS)))
    assert np.array_equal(next(iter(texts.batches(make_prior(), 9))).text_embed.numpy(), EMBEDS)
    texts = StoredArray(save(f"{tmp_path}/b.npy", EMBEDS[:0]))
    assert (texts.count, list(texts.batches(make_prior(), 9))) == (0, [])


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (EMBEDS[0], r"holds float32 of shape \[16\], floats \[N, D\] are needed"),
        (EMBEDS[None], r"holds float32 of shape \[1, 5, 16\]"),
        (EMBEDS.astype(np.int64), r"holds int64 of shape \[5, 16\]"),
        (EMBEDS.astype(np.complex64), "holds complex64"),
        (EMBEDS > 0, "holds bool"),
        (np.array([["a", "b"]]), "holds <U1"),
        (np.array([[{}]], dtype=object), r"not an array of numbers \(.*"),
    ],
    ids=["vector", "cube", "integers", "complex", "bool", "text", "objects"],
)
def test_an_array_of_another_kind_is_named(array: Any, named: str, tmp_path: Path) -> None:
    for path in (f"{tmp_path}/a.npy", "memory://t/b.npy"):
        save(path, array)
        with pytest.raises(InputError, match=rf"--embeddings .*\.npy: {named}"):
            StoredArray(path)


def whole() -> bytes:
    data = io.BytesIO()
    np.save(data, EMBEDS)
    return data.getvalue()


def several() -> bytes:
    data = io.BytesIO()
    np.savez(data, a=EMBEDS, b=EMBEDS)
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "not an array of numbers"),
        (b"\x93NUMPY", "not an array of numbers"),
        (whole()[:-1], "not an array of numbers"),
        (whole()[:40], "not an array of numbers"),
        (whole().replace(b"'shape'", b"'shapes"), "not an array of numbers"),
        (b"<html>", "not an array of numbers"),
        (several(), "holds several arrays, one is needed"),
    ],
    ids=["empty", "magic", "end cut", "header cut", "header damaged", "html", "npz"],
)
def test_a_damaged_array_is_named(data: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    fsspec.filesystem("memory").pipe("/d/a.npy", data)
    for path in (f"{tmp_path}/a.npy", "memory://d/a.npy"):
        with pytest.raises(InputError, match=rf"--embeddings .*a\.npy: {named}"):
            StoredArray(path)


class Marks:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_a_pickle_named_as_an_array_is_not_run(tmp_path: Path) -> None:
    data = pickle.dumps(Marks(tmp_path / "marker"))
    for path in (f"{tmp_path}/a.npy", "memory://p/a.npy"):
        with fsspec.open(path, "wb") as file:
            file.write(data)
        with pytest.raises(InputError, match=r"a\.npy: not an array of numbers"):
            StoredArray(path)
    assert not (tmp_path / "marker").exists()
    pickle.loads(data)
    assert (tmp_path / "marker").exists()  # it would have


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    for path in (f"{tmp_path}/a.npy", f"{tmp_path}/folder.npy", "memory://no/a.npy"):
        with pytest.raises(InputError, match=r"--embeddings .*\.npy: no such file"):
            stored_texts(path)


def test_an_array_that_does_not_fit_the_prior_is_named(tmp_path: Path) -> None:
    texts = StoredArray(save(f"{tmp_path}/a.npy", EMBEDS[:, :6]))
    with pytest.raises(InputError, match=r"--embeddings .*a\.npy: holds embeddings of 6, this prior takes 16"):
        next(texts.batches(make_prior(), 2))
    next(texts.batches(make_prior(text_dim=6), 2))
    texts = StoredArray(save(f"{tmp_path}/b.npy", EMBEDS))
    with pytest.raises(InputError, match=r"--embeddings .*b\.npy: this prior takes token states too"):
        next(texts.batches(make_prior(max_text_len=3), 2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named(value: float, tmp_path: Path) -> None:
    array = EMBEDS.copy()
    array[3, 7] = value
    texts = StoredArray(save(f"{tmp_path}/a.npy", array))
    for size in (1, 2, 9):
        with pytest.raises(InputError, match=r"--embeddings .*a\.npy: row 3 is not finite"):
            list(texts.batches(make_prior(), size))


@pytest.mark.parametrize("max_text_len", [0, 5])
def test_a_folder_is_read_in_order(max_text_len: int, embeddings_folder: Path) -> None:
    texts = stored_texts(str(embeddings_folder))
    assert isinstance(texts, StoredEmbeddings)
    dataset = EmbeddingDataset(str(embeddings_folder))
    assert texts.count == dataset.count == 60
    batches = list(texts.batches(make_prior(max_text_len), 23))
    assert [len(batch.text_embed) for batch in batches] == [23, 23, 14]
    expected = dataset.take(np.arange(60), max_text_len)
    assert np.array_equal(torch.cat([batch.text_embed for batch in batches]).numpy(), expected.text_embed)
    captions = dataset.metadata(np.arange(60), ["caption"]).column("caption").to_pylist()
    assert batches[0].labels == captions[:23]
    if max_text_len:
        states = torch.cat([batch.token_states for batch in batches if batch.token_states is not None])
        assert np.array_equal(states.numpy(), expected.token_states)
        assert states.shape == (60, 5, 16)
    else:
        assert [batch.token_states for batch in batches] == [None] * 3


def test_a_folder_that_does_not_fit_the_prior_is_named(embeddings_folder: Path) -> None:
    texts = StoredEmbeddings(str(embeddings_folder))
    with pytest.raises(InputError, match="was embedded by another CLIP than the prior was trained with"):
        next(texts.batches(make_prior(clip={"weights_sha256": "0" * 64}), 5))
    with pytest.raises(InputError, match=r"--embeddings .*embeddings: holds embeddings of 16, this prior takes 12"):
        next(texts.batches(make_prior(text_dim=12), 5))
    own = EmbeddingDataset(str(embeddings_folder)).clip
    assert len(next(texts.batches(make_prior(clip=own), 5)).text_embed) == 5


def test_a_path_without_embeddings_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing"):
        stored_texts(str(tmp_path / "nothing"))
