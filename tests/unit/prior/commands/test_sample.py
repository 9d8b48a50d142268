"""The command `sample`: its options, its output, and its messages about mistakes."""

from __future__ import annotations

import io
import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from priorkit.pipeline.compute.settings import DeviceSettings
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.prior.interchange.load import load_prior
from priorkit.prior.model.config import NormStatistics
from priorkit.prior.model.folder import save_prior
from priorkit.prior.model.prior import Prior
from priorkit.prior.model.text_encoder import encode_empty_inputs

from ..raw_priors import make_raw_config, make_raw_prior
from .running import FAST, good, refused, run, write_prior


@pytest.mark.parametrize("prior", ["prior", "with_states"])
def test_captions(prior: str, here: Path) -> None:
    shown = good("sample", prior, "a red square", "", *FAST).stdout
    found = np.load(here / "samples.npy", allow_pickle=False)
    assert (found.shape, found.dtype) == ((2, 16), np.float32)
    expected = load_prior(prior).sample(["a red square", ""], steps=3, num_candidates=2)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    assert "a red square" in shown
    assert "mean cosine to the text: " in shown
    assert "wrote samples.npy: float32 [2, 16]" in shown
    assert sorted(path.name for path in here.iterdir()) == ["no_clip", "prior", "samples.npy", "with_states"]


def test_every_option_reaches_the_sampler(here: Path) -> None:
    options = (
        *("--num-candidates", "3", "--guidance-scale", "1.5", "--guidance", "text", "--sampler", "ddpm"),
        *("--seed", "5", "--dtype", "bfloat16", "--steps", "4", "--device", "cpu"),
    )
    good("sample", "prior", "a cat", "--output", "out/a.safetensors", *options)
    found = safetensors.numpy.load_file(here / "out/a.safetensors")["image_embed"]
    expected = load_prior("prior", dtype="bfloat16").sample(
        ["a cat"], num_candidates=3, guidance_scale=1.5, guidance="text", sampler="ddpm", seed=5, steps=4
    )
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_the_json_of_captions(here: Path) -> None:
    captions = ["a cat", "\x1b[31m\u202e[bold]x"]
    result = good("sample", "prior", *captions, "--json", *FAST)
    assert result.stdout.isascii()
    assert "\x1b" not in result.stdout
    found = json.loads(result.stdout)
    assert (found["output"], found["shape"], found["labels"]) == ("samples.npy", [2, 16], captions)
    assert len(found["cosine_to_text"]) == 2
    assert found["mean_cosine_to_text"] == pytest.approx(sum(found["cosine_to_text"]) / 2)


def test_control_characters_in_captions_do_not_reach_the_terminal(here: Path) -> None:
    hostile = ["\x1b[2J\x1b]0;title\x07", "[bold red]x[/bold red] [/]", "\u202ecba\u2066", "a\tb\u2028c", "\x9b31m"]
    (here / "a.txt").write_text("\n".join(caption for caption in hostile), encoding="utf-8")
    for arguments in (hostile, ["--prompts", "a.txt"]):
        shown = good("sample", "prior", *arguments, *FAST).output
        steering = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}
        assert not steering
        assert "[bold red]x[/bold red] [/]" in shown
        assert "\\x1b[2J" in shown


def test_a_prompt_file(here: Path) -> None:
    lines = [f"caption number {number}" for number in range(70)]
    lines[3] = ""
    (here / "a.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    shown = good("sample", "prior", "--prompts", "a.txt", *FAST).stdout
    assert "samples (first 20 of 70)" in shown
    assert "caption number 19" in shown
    assert "caption number 20" not in shown
    found = np.load(here / "samples.npy")
    good("sample", "prior", *lines, "--output", "b.npy", *FAST)
    assert np.array_equal(np.load(here / "b.npy"), found)
    one = good("sample", "prior", lines[0], "--output", "c.npy", *FAST)
    assert "caption number 0" in one.stdout
    np.testing.assert_allclose(np.load(here / "c.npy"), found[:1], atol=1e-5)


def test_an_empty_prompt_file_makes_an_empty_array(here: Path) -> None:
    (here / "a.txt").touch()
    assert "wrote samples.npy: float32 [0, 16]" in good("sample", "prior", "--prompts", "a.txt", *FAST).stdout
    assert np.load(here / "samples.npy").shape == (0, 16)
    found = json.loads(good("sample", "prior", "--prompts", "a.txt", "--json", *FAST).stdout)
    assert (found["shape"], found["mean_cosine_to_text"]) == ([0, 16], None)


def test_an_array_of_embeddings(here: Path) -> None:
    embeds = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float16)
    np.save(here / "texts.npy", embeds)
    shown = good("sample", "no_clip", "--embeddings", "texts.npy", *FAST).stdout
    assert "row 4" in shown
    expected = load_prior("no_clip").sample(text_embed=torch.from_numpy(embeds), steps=3, num_candidates=2)
    np.testing.assert_allclose(np.load(here / "samples.npy"), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("prior", ["prior", "with_states", "no_clip"])
def test_a_folder_of_embeddings(prior: str, here: Path, embeddings_folder: Path) -> None:
    shown = good("sample", prior, "--embeddings", embeddings_folder, "--output", "a.npy", *FAST).stdout
    assert "samples (first 20 of 60)" in shown
    assert "square number 0" in shown
    dataset, loaded = EmbeddingDataset(str(embeddings_folder)), load_prior(prior)
    batch = dataset.take(np.arange(60), loaded.token_states_used)
    states = None if batch.token_states is None else torch.from_numpy(batch.token_states)
    expected = loaded.sample(
        text_embed=torch.from_numpy(batch.text_embed), token_states=states, steps=3, num_candidates=2
    )
    np.testing.assert_allclose(np.load(here / "a.npy"), expected.numpy(), atol=1e-5)


def test_stored_embeddings_need_no_clip(here: Path, embeddings_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No CLIP is loaded, and none of these modules is imported: `test_house.py` finds imports outside functions."""
    np.save(here / "texts.npy", np.ones((2, 16), np.float32))
    for package in ("open_clip", "ray", "img2dataset", "priorkit.pipeline.clip.encoder"):
        monkeypatch.setitem(sys.modules, package, None)  # an import raises ImportError
    for source in (embeddings_folder, "texts.npy"):
        for prior in ("no_clip", "prior"):
            shown = good("sample", prior, "--embeddings", source, "--steps", "2", "--device", "cpu").stdout
            assert "wrote samples.npy" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["a cat", "--prompts", "a.txt"], ["a cat", "--embeddings", "texts.npy"],
        ["--prompts", "a.txt", "--embeddings", "texts.npy"], ["a", "--prompts", "a.txt", "--embeddings", "texts.npy"],
    ],
)  # fmt: skip
def test_exactly_one_source(arguments: list[str], here: Path) -> None:
    (here / "a.txt").write_text("a cat\n")
    np.save(here / "texts.npy", np.ones((2, 16), np.float32))
    assert "give one of: captions, --prompts FILE, --embeddings FOLDER" in refused("sample", "prior", *arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nothing", "a cat"], "nothing: no prior is there"),
        (["nothing.pth", "a cat"], "nothing.pth: give config="),
        (["nothing.pth", "a cat", "--config", "laion-model-card"], "nothing.pth: no such file"),
        (["prior", "a cat", "--config", "laion-model-card"], "config= belongs to checkpoints"),
        (["prior", "a cat", "--weights", "online"], "weights='online' are in a training's checkpoints"),
        (["prior", "a cat", "--function-version", "1.15.6"], "function_version= belongs to checkpoints"),
        (["no_clip", "a cat"], "does not say which CLIP it belongs to"),
        (["prior", "a cat", "--output", "a.txt"], "--output a.txt: end it with .npy or .safetensors"),
        (["prior", "a cat", "--output", "folder.npy"], "--output folder.npy: is a folder"),
        (["prior", "a cat", "--device", "tpu"], "--device=tpu: known are auto, cpu and cuda"),
        (["prior", "a cat", "--dtype", "float16"], "dtype='float16': known are float32, bfloat16"),
        (["prior", "a cat", "--steps", "11"], "steps=11: ddim samples this prior in 1 to 10 steps"),
        (["prior", "a cat", "--sampler", "euler"], "sampler"),
        (["prior", "a cat", "--guidance", "all"], "guidance"),
        (["prior", "a cat", "--guidance-scale", "-1"], "guidance_scale"),
        (["prior", "a cat", "--guidance-scale", "nan"], "guidance_scale"),
        (["prior", "--prompts", "no.txt"], "--prompts no.txt: no such file"),
        (["prior", "--prompts", "latin.txt"], "--prompts latin.txt: not UTF-8 text"),
        (["prior", "--prompts", "prior"], "--prompts prior: no such file"),
        (["prior", "--embeddings", "no.npy"], "--embeddings no.npy: no such file"),
        (["prior", "--embeddings", "narrow.npy"], "narrow.npy: holds embeddings of 5, this prior takes 16"),
        (["prior", "--embeddings", "integers.npy"], "integers.npy: holds int64 of shape [2, 16], floats [N, D]"),
        (["prior", "--embeddings", "nan.npy"], "nan.npy: row 1 is not finite"),
        (["with_states", "--embeddings", "good.npy"], "good.npy: this prior takes token states too"),
        (["prior", "--embeddings", "nothing"], "nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_named_and_leave_no_file(arguments: list[str], named: str, here: Path) -> None:
    (here / "latin.txt").write_bytes(b"caf\xe9\n")
    (here / "folder.npy").mkdir()
    arrays = {"narrow": np.ones((2, 5)), "integers": np.ones((2, 16), np.int64), "good": np.ones((2, 16))}
    arrays["nan"] = np.array([[1.0] * 16, [np.nan] * 16])
    for name, array in arrays.items():
        np.save(here / f"{name}.npy", array)
    before = sorted(here.rglob("*"))
    given = arguments if "--steps" in arguments else [*arguments, "--steps", "3"]
    assert named in refused("sample", *given)
    assert sorted(here.rglob("*")) == before


def test_another_clip_is_refused(here: Path, embeddings_folder: Path) -> None:
    identity = {"weights_sha256": "0" * 64, "dtype": "float32"}
    clip = load_prior("prior").config.clip_settings
    write_prior(here / "other", clip, clip=identity)
    assert "embedded by another CLIP" in refused("sample", "other", "--embeddings", embeddings_folder, *FAST)
    assert "has other weights than the one" in refused("sample", "other", "a cat", *FAST)
    assert not (here / "samples.npy").exists()


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_the_older_file(
    interrupt: type[BaseException], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good("sample", "prior", "a cat", *FAST)
    before = (here / "samples.npy").read_bytes()
    (here / "a.txt").write_text("a cat\n" * 100)
    inner, calls = Prior.sample, []

    def sample(self: Prior, *arguments: Any, **settings: Any) -> torch.Tensor:
        calls.append(settings.get("first"))
        if settings.get("first"):
            raise interrupt
        return inner(self, *arguments, **settings)

    monkeypatch.setattr(Prior, "sample", sample)
    result = run("sample", "prior", "--prompts", "a.txt", *FAST)
    assert calls[-1] == 64
    assert result.exit_code == (130 if interrupt is KeyboardInterrupt else 1)
    assert (here / "samples.npy").read_bytes() == before
    assert not [path for path in here.iterdir() if "tmp" in path.name]


def test_the_array_may_be_remote(here: Path) -> None:
    import fsspec

    data = io.BytesIO()
    np.save(data, np.ones((2, 16), np.float32))
    fsspec.filesystem("memory").pipe({"/s/a.npy": data.getvalue(), "/s/a.txt": b"a cat\n"})
    good("sample", "no_clip", "--embeddings", "memory://s/a.npy", *FAST)
    assert np.load(here / "samples.npy").shape == (2, 16)
    good("sample", "prior", "--prompts", "memory://s/a.txt", *FAST)
    assert np.load(here / "samples.npy").shape == (1, 16)


# norms and consumers


@pytest.fixture
def raw_prior(here: Path, tiny_clip: Path) -> Prior:
    """A prior of the family `prior-transformer` in the folder `raw`, which stores the CLIP's empty inputs."""
    clip = {"model": f"local-dir:{tiny_clip}", "pretrained": None}
    config = make_raw_config({"num_embeddings": 77}, embed_dim=16, text_dim=16, token_width=16, clip_settings=clip)
    prior = make_raw_prior(config, encode_empty_inputs(clip, {}, DeviceSettings(device="cpu")))
    save_prior(Store("raw").create, config, prior.network, prior.normaliser, prior.empty)
    return prior


@pytest.mark.parametrize("norm", [None, "raw", "unit"])
def test_norms(norm: Any, raw_prior: Prior) -> None:
    options = () if norm is None else ("--norm", norm)
    shown = good("sample", "raw", "a red square", "--sampler", "unclip", *options, *FAST).stdout
    assert "wrote samples.npy: float32 [1, 16]" in shown
    expected = raw_prior.sample(["a red square"], sampler="unclip", steps=3, num_candidates=2, norm=norm)
    np.testing.assert_allclose(np.load("samples.npy"), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert (abs(np.linalg.norm(np.load("samples.npy")) - 1) < 1e-5) == (norm == "unit")


def test_a_negative_prompt(raw_prior: Prior) -> None:
    options = ("--guidance-scale", "3", "--negative-prompt", "blurred")
    good("sample", "raw", "a red square", *options, *FAST)
    expected = raw_prior.sample(
        ["a red square"], steps=3, num_candidates=2, guidance_scale=3.0, negative_prompt="blurred"
    )
    np.testing.assert_allclose(np.load("samples.npy"), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert "negative_prompt has no effect with guidance_scale=1" in refused(
        "sample", "raw", "a", "--negative-prompt", "x", *FAST
    )


def large_unit_prior(pretrained: str = "openai") -> None:
    """A prior of size 768 in the folder `large`, which predicts no norms, and texts for it in `texts.npy`."""
    write_prior(
        Path("large"), {"model": "ViT-L-14", "pretrained": pretrained}, embed_dim=768,
        image_norm=NormStatistics(mean=20.0, std=2.0),
    )  # fmt: skip
    np.save("texts.npy", np.random.default_rng(0).standard_normal((2, 768)).astype(np.float32))


def test_a_unit_prior_for_a_decoder_has_a_warning(here: Path) -> None:
    large_unit_prior()
    result = good("sample", "large", "--embeddings", "texts.npy", "--for", "karlo", "--output", "a.safetensors", *FAST)
    shown = " ".join(result.output.split())
    assert "this prior predicts no norms: all samples get the mean norm of its training images, 20;" in shown
    assert "pictures of karlo change by about 8% if a norm is 10% off" in shown
    found = safetensors.numpy.load_file("a.safetensors")["image_embed"]
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 20.0, rtol=1e-5)
    result = good("sample", "large", "--embeddings", "texts.npy", "--for", "clip-retrieval", *FAST)
    assert "predicts no norms" not in " ".join(result.output.split())
    np.testing.assert_allclose(np.linalg.norm(np.load("samples.npy"), axis=-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--for", "sdxl"), "--for sdxl: known are kandinsky-2.2, kandinsky-2.1, karlo, stable-unclip, ip-adapter, "),
        (("--for", "karlo"), "--output samples.npy: a file for karlo also holds the norm and the CLIP; end it with"),
        (("--for", "kandinsky-2.2"), "it takes embeddings of the CLIP ViT-bigG-14 (laion2b_s39b_b160k, size 1280)"),
        (("--for", "clip-retrieval", "--norm", "raw"), "--norm raw: clip-retrieval takes embeddings of norm unit"),
        (("--for", "karlo", "--guidance-scale", "2", "--negative-prompt", "x"), "karlo takes no embedding of one"),
        (("--norm", "sphere"), "norm='sphere': known are unit and raw"),
        (("--sampler", "one-step"), "steps=3: one-step samples this prior in 1 step: set steps=1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(options: tuple[str, ...], message: str, here: Path) -> None:
    large_unit_prior()
    assert message in refused("sample", "large", "--embeddings", "texts.npy", *options, *FAST)
    assert not Path("samples.npy").exists()


def test_another_clip_of_the_same_size_is_refused(here: Path) -> None:
    large_unit_prior("laion2b_s32b_b82k")
    options = ("--for", "karlo", "--output", "a.safetensors")
    message = "it takes embeddings of the CLIP ViT-L-14 (openai, size 768), and this prior's is ViT-L-14"
    assert message in refused("sample", "large", "--embeddings", "texts.npy", *options, *FAST)


def test_the_norms_of_stored_texts_are_read_from_the_folder(raw_prior: Prior, embeddings_folder: Path) -> None:
    good("sample", "raw", "--embeddings", embeddings_folder, "--num-candidates", "1", *FAST)
    dataset = EmbeddingDataset(str(embeddings_folder))
    batch = dataset.take(np.arange(60), raw_prior.token_states_used, raw_text=True)
    assert batch.token_states is not None
    states = torch.from_numpy(batch.token_states)
    expected = raw_prior.sample(text_embed=torch.from_numpy(batch.text_embed), token_states=states, steps=3)
    np.testing.assert_allclose(np.load("samples.npy"), expected.numpy(), rtol=1e-4, atol=1e-4)
