"""Pictures of every decoder, which are those of its pipeline called directly with the same embeddings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from priorkit.pipeline.errors import InputError, Interrupted, SettingsError
from priorkit.prior.decode.settings import DecodeSettings
from priorkit.prior.decode.stage import decode

from ....tiny_decoders import TARGETS, write_embeds, write_ip_adapter

SIZES = {target: 64 if target.startswith("kandinsky") else 32 for target in TARGETS}
STEPS = 2

# The first test that imports diffusers takes many seconds.
drawing = pytest.mark.slow


class Direct:
    """The pipelines as unclip's users call them, one row at a time or several."""

    def __init__(self, folder: str, target: str, ip_adapter: Path, dtype: torch.dtype = torch.float32) -> None:
        import diffusers
        from diffusers.pipelines.deprecated.unclip import UnCLIPImageVariationPipeline, UnCLIPTextProjModel

        diffusers.utils.logging.set_verbosity_error()
        self.target, self.dtype = target, dtype
        classes = {
            "kandinsky-2.2": diffusers.KandinskyV22Pipeline, "kandinsky-2.1": diffusers.KandinskyPipeline,
            "stable-unclip": diffusers.StableUnCLIPImg2ImgPipeline, "ip-adapter": diffusers.StableDiffusionPipeline,
        }  # fmt: skip
        if target == "karlo":
            parts = ("decoder", "super_res_first", "super_res_last")
            models = {name: _part(diffusers, folder, name, dtype) for name in parts}
            schedulers = {
                name: diffusers.UnCLIPScheduler.from_pretrained(folder, subfolder=name)
                for name in ("decoder_scheduler", "super_res_scheduler")
            }
            text_proj = UnCLIPTextProjModel.from_pretrained(folder, subfolder="text_proj", dtype=dtype)
            self.pipeline: Any = UnCLIPImageVariationPipeline(
                **models, **schedulers, text_proj=text_proj, feature_extractor=None, **_towers(folder, dtype)
            )
        else:
            self.pipeline = classes[target].from_pretrained(folder, dtype=dtype)
        if target == "ip-adapter":
            self.pipeline.load_ip_adapter(
                str(ip_adapter.parent), subfolder="", weight_name=ip_adapter.name, image_encoder_folder=None
            )
        self.pipeline.set_progress_bar_config(disable=True)

    def draw(
        self, tensors: dict[str, torch.Tensor], rows: slice, seed: int = 0, prompts: list[str] | None = None,
        **options: Any,
    ) -> list[np.ndarray]:  # fmt: skip
        image = tensors["image_embed"][rows].to(self.dtype)
        negative = tensors.get("negative_image_embed", image)[rows].to(self.dtype)
        prompt = [""] * len(image) if prompts is None else prompts
        generator = [torch.Generator().manual_seed(seed + row) for row in range(rows.start, rows.stop)]
        options = {"generator": generator, **options}
        if self.target == "karlo":
            found = self.pipeline(image_embeddings=image, decoder_num_inference_steps=STEPS, **options)
            return list(map(np.asarray, found.images))
        options |= {"num_inference_steps": STEPS, "height": SIZES[self.target], "width": SIZES[self.target]}
        if self.target.startswith("kandinsky"):
            prompted = {"prompt": prompt} if self.target == "kandinsky-2.1" else {}
            found = self.pipeline(image_embeds=image, negative_image_embeds=negative, **prompted, **options)
        elif self.target == "stable-unclip":
            found = self.pipeline(image_embeds=image, prompt=prompt, **options)
        else:
            guided = options.get("guidance_scale", 7.5) > 1
            embeds = torch.cat([negative, image]) if guided else image
            found = self.pipeline(ip_adapter_image_embeds=[embeds], prompt=prompt, **options)
        return list(map(np.asarray, found.images))


def _part(diffusers: Any, folder: str, name: str, dtype: torch.dtype) -> Any:
    cls = diffusers.UNet2DConditionModel if name == "decoder" else diffusers.UNet2DModel
    return cls.from_pretrained(folder, subfolder=name, dtype=dtype)


def _towers(folder: str, dtype: torch.dtype) -> dict[str, Any]:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    towers = (("text_encoder", "CLIPTextModelWithProjection"), ("image_encoder", "CLIPVisionModelWithProjection"))
    loaded: dict[str, Any] = {
        name: getattr(transformers, cls).from_pretrained(folder, subfolder=name, dtype=dtype) for name, cls in towers
    }
    return {**loaded, "tokenizer": transformers.CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")}


def settings(target: str, ip_adapter: Path, **given: Any) -> DecodeSettings:
    adapter = {"ip_adapter": str(ip_adapter)} if target == "ip-adapter" else {}
    size = None if target == "karlo" else SIZES[target]
    return DecodeSettings(**{"steps": STEPS, "device": "cpu", "size": size, **adapter, **given})


def read(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]


PROMPTS = ["a b", "a c", "a d"]


@drawing
@pytest.mark.parametrize("target", TARGETS)
def test_pictures_are_those_of_the_pipeline_bit_for_bit(
    target: str, tiny_decoder: Callable[[str], str], ip_adapter: Path, tmp_path: Path
) -> None:
    """Also that the noise is that of the row: the last two rows alone are drawn in a batch of their own."""
    path, folder = tmp_path / "a.safetensors", tiny_decoder(target)
    tensors = write_embeds(path, target)
    one_by_one = target == "ip-adapter"
    given = settings(target, ip_adapter, seed=7, batch_size=None if one_by_one else 2)
    done = decode(str(path), folder, f"{tmp_path}/pictures/", given)
    assert (done.target, done.pictures, done.size, done.notes) == (target, 3, SIZES[target], [])
    direct = Direct(folder, target, ip_adapter)
    expected = []
    for rows in (slice(0, 1), slice(1, 2), slice(2, 3)) if one_by_one else (slice(0, 2), slice(2, 3)):
        prompts = PROMPTS[rows] if target == "kandinsky-2.1" else None
        expected += direct.draw(tensors, rows, seed=7, prompts=prompts)
    found = read(tmp_path / "pictures")
    assert len(found) == 3
    for picture, other in zip(found, expected, strict=True):
        assert np.array_equal(picture, other)
    assert len({picture.tobytes() for picture in found}) == 3
    assert min(int(picture.std()) for picture in found) > 10


@drawing
@pytest.mark.parametrize("target", [target for target in TARGETS if target != "karlo"])
def test_guidance_of_1_needs_no_other_type(
    target: str, tiny_decoder: Callable[[str], str], ip_adapter: Path, tmp_path: Path
) -> None:
    """In bfloat16, a pipeline that does not convert the embeddings fails."""
    path, folder = tmp_path / "a.safetensors", tiny_decoder(target)
    tensors = write_embeds(path, target, rows=1)
    for scale, name in ((1.0, "off"), (3.0, "on")):
        given = settings(target, ip_adapter, dtype="bfloat16", guidance_scale=scale)
        decode(str(path), folder, f"{tmp_path}/{name}/", given)
        direct = Direct(folder, target, ip_adapter, torch.bfloat16)
        prompts = PROMPTS[:1] if target == "kandinsky-2.1" else None
        (expected,) = direct.draw(tensors, slice(0, 1), prompts=prompts, guidance_scale=scale)
        (found,) = read(tmp_path / name)
        assert np.array_equal(found, expected)
    assert not np.array_equal(read(tmp_path / "off")[0], read(tmp_path / "on")[0])


@drawing
def test_a_precision_that_the_device_lacks_is_named(
    tiny_decoder: Callable[[str], str], ip_adapter: Path, tmp_path: Path
) -> None:
    write_embeds(tmp_path / "a.safetensors", "karlo", rows=1)
    given = settings("karlo", ip_adapter, dtype="bfloat16")
    with pytest.raises(SettingsError, match=r"--dtype bfloat16: karlo cannot .* on cpu \(.*\); use --dtype float32$"):
        decode(str(tmp_path / "a.safetensors"), tiny_decoder("karlo"), f"{tmp_path}/a.png", given)


@drawing
def test_an_ip_adapter_draws_one_at_a_time_because_its_pipeline_mixes_a_batch(
    tiny_decoder: Callable[[str], str], ip_adapter: Path, tmp_path: Path
) -> None:
    """If this fails, https://github.com/huggingface/diffusers/issues/9813 is fixed, and batches can be drawn."""
    tensors = write_embeds(tmp_path / "a.safetensors", "ip-adapter", rows=2)
    direct = Direct(tiny_decoder("ip-adapter"), "ip-adapter", ip_adapter)
    (alone,) = direct.draw(tensors, slice(0, 1))
    together = direct.draw(tensors, slice(0, 2))
    assert np.abs(alone.astype(int) - together[0]).max() > 20


@drawing
def test_an_ip_adapter_may_be_one_of_stable_diffusion_xl(tiny_decoder: Callable[[str], str], tmp_path: Path) -> None:
    import diffusers

    folder, adapter = tiny_decoder("xl"), write_ip_adapter(tmp_path / "xl.safetensors", xl=True)
    tensors = write_embeds(tmp_path / "a.safetensors", "ip-adapter", rows=1)
    decode(str(tmp_path / "a.safetensors"), folder, f"{tmp_path}/pictures/", settings("ip-adapter", adapter))
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.load_ip_adapter(str(tmp_path), subfolder="", weight_name="xl.safetensors", image_encoder_folder=None)
    embeds = torch.cat([tensors["negative_image_embed"], tensors["image_embed"]])
    generator = torch.Generator().manual_seed(0)
    (expected,) = pipeline(
        "", ip_adapter_image_embeds=[embeds], generator=generator, num_inference_steps=STEPS, height=32, width=32
    ).images
    (found,) = read(tmp_path / "pictures")
    assert np.array_equal(found, np.asarray(expected))


@drawing
def test_a_grid_has_the_pictures_of_the_folder_and_the_limit(
    tiny_decoder: Callable[[str], str], ip_adapter: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    write_embeds(path, "stable-unclip", rows=5, prompts=["a \udcff 汉", "b"])
    seen: list[tuple[int, int | None, str]] = []
    given = settings("stable-unclip", ip_adapter, limit=3, noise_level=10, batch_size=2)
    pipeline = tiny_decoder("stable-unclip")
    done = decode(str(path), pipeline, f"{tmp_path}/a.png", given, progress=lambda *each: seen.append(each))
    decode(str(path), pipeline, f"{tmp_path}/pictures/", given)
    assert done.pictures == 3
    grid, found = np.asarray(Image.open(tmp_path / "a.png")), read(tmp_path / "pictures")
    assert len(found) == 3
    cell = (grid.shape[0] - 12) // 2
    for number, picture in enumerate(found):
        top, left = 12 + number // 2 * cell, 12 + number % 2 * 108 + 32
        assert np.array_equal(grid[top : top + 32, left : left + 32], picture)
    assert seen == [
        (0, 3, ""), (0, 3, "step 1"), (0, 3, "step 2"), (2, 3, ""), (2, 3, "step 1"), (2, 3, "step 2"), (3, 3, ""),
    ]  # fmt: skip
    names = sorted((tmp_path / "pictures").iterdir())
    assert [Image.open(name).text["prompt"] for name in names] == ["a \\udcff 汉", "b", "row 2"]  # type: ignore[attr-defined]
    noisier = settings("stable-unclip", ip_adapter, limit=1, noise_level=900)
    decode(str(path), pipeline, f"{tmp_path}/noisier/", noisier)
    assert not np.array_equal(read(tmp_path / "noisier")[0], found[0])


@drawing
def test_prompts_reach_the_pipeline_only_if_asked_for(
    tiny_decoder: Callable[[str], str], ip_adapter: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    for target, default in (("kandinsky-2.1", True), ("stable-unclip", False), ("ip-adapter", False)):
        write_embeds(path, target, rows=1)
        found = {}
        for prompts in (None, True, False):
            output = tmp_path / f"{target}-{prompts}"
            given = settings(target, ip_adapter, prompts=prompts)
            decode(str(path), tiny_decoder(target), f"{output}/", given)
            (found[prompts],) = read(output)
        assert not np.array_equal(found[True], found[False])
        assert np.array_equal(found[None], found[default])


@drawing
def test_what_does_not_fit_the_pipeline_is_named(
    tiny_decoder: Callable[[str], str], ip_adapter: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    for target in TARGETS:
        write_embeds(path, target, dim=16)
        with pytest.raises(InputError, match=r"its embeddings have 16 values, and .* takes 12; they are of another"):
            decode(str(path), tiny_decoder(target), f"{tmp_path}/a.png", settings(target, ip_adapter))
    write_embeds(path, "kandinsky-2.2")
    with pytest.raises(SettingsError, match=r"--size 96: kandinsky-2\.2 draws multiples of 64 pixels"):
        decode(str(path), tiny_decoder("kandinsky-2.2"), f"{tmp_path}/a.png", DecodeSettings(size=96, device="cpu"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@drawing
def test_a_setting_that_only_the_pipeline_refuses_is_no_bug_of_priorkit(
    tiny_decoder: Callable[[str], str], ip_adapter: Path, tmp_path: Path
) -> None:
    write_embeds(tmp_path / "a.safetensors", "kandinsky-2.2")
    given = settings("kandinsky-2.2", ip_adapter, steps=5000)
    with pytest.raises(SettingsError, match=r"kandinsky-2\.2: its pipeline refuses the settings \(.*5000"):
        decode(str(tmp_path / "a.safetensors"), tiny_decoder("kandinsky-2.2"), f"{tmp_path}/a.png", given)


@drawing
def test_pictures_that_a_safety_checker_withholds_are_counted(
    tiny_decoder: Callable[[str], str], ip_adapter: Path, tmp_path: Path
) -> None:
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16,
        "intermediate_size": 37,
    }  # fmt: skip
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    checker.concept_embeds_weights.data.fill_(-10)  # finds every concept in every picture
    pipeline = Direct(tiny_decoder("ip-adapter"), "ip-adapter", ip_adapter).pipeline
    pipeline.unload_ip_adapter()
    pipeline.register_modules(safety_checker=checker, feature_extractor=CLIPImageProcessor(size=32, crop_size=32))
    pipeline.save_pretrained(tmp_path / "decoder")
    write_embeds(tmp_path / "a.safetensors", "ip-adapter", rows=2)
    given = settings("ip-adapter", ip_adapter)
    done = decode(str(tmp_path / "a.safetensors"), str(tmp_path / "decoder"), f"{tmp_path}/pictures/", given)
    assert done.notes == ["2 pictures are black, because the pipeline's safety checker withheld them"]
    assert [int(picture.max()) for picture in read(tmp_path / "pictures")] == [0, 0]


@drawing
def test_pictures_that_are_not_finite_are_refused(
    tiny_decoder: Callable[[str], str], ip_adapter: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    write_embeds(path, "karlo", tensors={"image_embed": torch.full((1, 12), 3e38)})
    with pytest.raises(InputError, match="not finite in float32; use --dtype float32, or another pipeline"):
        decode(str(path), tiny_decoder("karlo"), f"{tmp_path}/a.png", settings("karlo", ip_adapter))


@drawing
def test_an_interruption_says_what_was_written(
    tiny_decoder: Callable[[str], str], ip_adapter: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    write_embeds(path, "karlo")

    def interrupt(done: int, total: int | None, note: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    given = settings("karlo", ip_adapter, batch_size=1)
    with pytest.raises(Interrupted, match=r"/a\.png was not written, and the same command starts again"):
        decode(str(path), tiny_decoder("karlo"), f"{tmp_path}/a.png", given, progress=interrupt)
    with pytest.raises(Interrupted, match=r"/pictures/ has 2 pictures"):
        decode(str(path), tiny_decoder("karlo"), f"{tmp_path}/pictures/", given, progress=interrupt)


@pytest.mark.parametrize(
    ("target", "given", "prompts", "named"),
    [
        (
            "kandinsky-2.1",
            {},
            ["a"],
            "it holds the prompts of 1 of its 3 rows; draw them alone with --limit 1, or give",
        ),
        ("kandinsky-2.1", {}, [], "it holds the prompts of 0 of its 3 rows; give empty prompts with --no-prompts"),
        (
            "kandinsky-2.1",
            {},
            ["a", "row 1", "b"],
            "row 1 has no prompt, because it was sampled from a stored embedding",
        ),
        ("stable-unclip", {"prompts": True}, ["a"], "it holds the prompts of 1 of its 3 rows"),
        ("karlo", {"size": 64}, None, "karlo draws pictures of one size"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_loaded(
    target: str, given: dict[str, Any], prompts: Any, named: str, tmp_path: Path
) -> None:
    write_embeds(tmp_path / "a.safetensors", target, prompts=prompts)
    with pytest.raises(SettingsError) as error:
        decode(str(tmp_path / "a.safetensors"), "nothing", f"{tmp_path}/a.png", DecodeSettings(**given))
    assert named in str(error.value)


def test_without_diffusers_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    write_embeds(tmp_path / "a.safetensors", "karlo")
    with pytest.raises(InputError, match=r'diffusers.*: pip install "priorkit\[decode\]"'):
        decode(str(tmp_path / "a.safetensors"), "nothing", f"{tmp_path}/a.png", DecodeSettings())
