"""Loading of pipelines, and messages about those that cannot be loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from priorkit.pipeline.errors import InputError
from priorkit.prior.decode.pipelines import load_decoder

from ....tiny_decoders import write_ip_adapter

pytestmark = pytest.mark.slow  # the first test imports diffusers, which takes many seconds


def refused(name: str, pipeline: object, named: str, ip_adapter: object = None) -> None:
    adapter = None if ip_adapter is None else str(ip_adapter)
    with pytest.raises(InputError) as error:
        load_decoder(name, str(pipeline), "cpu", torch.float32, adapter)  # type: ignore[arg-type]
    assert named in str(error.value)
    assert str(error.value).count("\n") < 3


def test_logs_and_progress_bars_are_as_before(
    tiny_decoder: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    from diffusers.utils import logging
    from transformers.utils import logging as of_transformers

    folder = tiny_decoder("karlo")
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in (logging, of_transformers)]
    capfd.readouterr()
    decoder = load_decoder("karlo", folder, "cpu", torch.float32)
    assert capfd.readouterr() == ("", "")
    assert [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in (logging, of_transformers)] == before
    assert (decoder.embed_dim, decoder.size) == (12, 32)


def test_another_class_is_named_with_its_decoder(tiny_decoder: Callable[[str], str], tmp_path: Path) -> None:
    folder = tiny_decoder("kandinsky-2.2")
    refused(
        "karlo", folder, "it is a KandinskyV22Pipeline, and karlo a UnCLIPImageVariationPipeline; sample with --for"
    )
    copy = shutil.copytree(folder, tmp_path / "copy")
    index = copy / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "FluxPipeline"}))
    refused("karlo", copy, "it is a FluxPipeline, and karlo a UnCLIPImageVariationPipeline; give a UnCLIP")


@pytest.mark.parametrize("name", ["nothing", "./a/b", "/a", "a/b/c"])
def test_what_is_no_folder_and_no_name_is_refused(name: str) -> None:
    refused("karlo", name, f"--pipeline {name}: no such folder, and no name on the hub such as kandinsky-community/")


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("karlo", "nobody/nothing", "--pipeline nobody/nothing: cannot be loaded (the hub cannot be reached: ")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_a_damaged_folder_is_named(
    tiny_decoder: Callable[[str], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refused("karlo", tmp_path, "it has no model_index.json; give the folder that save_pretrained")
    copy = shutil.copytree(tiny_decoder("kandinsky-2.2"), tmp_path / "copy")
    capfd.readouterr()
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refused("kandinsky-2.2", copy, f"--pipeline {copy}: cannot be loaded (")
    weights.unlink()
    refused("kandinsky-2.2", copy, f"--pipeline {copy}: cannot be loaded (")
    (copy / "model_index.json").write_text("{")
    refused("kandinsky-2.2", copy, f"--pipeline {copy}: cannot be loaded (")
    assert capfd.readouterr() == ("", "")


def test_no_code_of_a_pipeline_is_run(tiny_decoder: Callable[[str], str], tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_decoder("kandinsky-2.2"), tmp_path / "copy")
    index = copy / "model_index.json"
    (copy / "unet" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass UNet2DConditionModel: pass\n")
    index.write_text(json.dumps({**json.loads(index.read_text()), "unet": ["own", "UNet2DConditionModel"]}))
    refused("kandinsky-2.2", copy, f"--pipeline {copy}: cannot be loaded (")
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_no_plain_adapter_are_named(tiny_decoder: Callable[[str], str], tmp_path: Path) -> None:
    folder = tiny_decoder("ip-adapter")
    refused("ip-adapter", folder, "no such file, and no ORG/NAME/FILE", tmp_path / "nothing.safetensors")
    refused("ip-adapter", folder, "no such file, and no ORG/NAME/FILE", "nothing.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\0" * 20)
    refused("ip-adapter", folder, "damaged.safetensors: cannot be loaded (", tmp_path / "damaged.safetensors")
    plus = write_ip_adapter(tmp_path / "plus.safetensors", plus=True)
    refused("ip-adapter", folder, "plus.safetensors", plus)
