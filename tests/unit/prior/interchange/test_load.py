"""Loading priors from folders and checkpoints, and conversion between the two."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from priorkit import convert as public_convert
from priorkit import load_prior as public_load_prior
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.errors import FolderError, InputError, PriorkitError, SettingsError
from priorkit.prior.interchange.dalle2_settings import to_dalle2_config
from priorkit.prior.interchange.dalle2_weights import export_weights
from priorkit.prior.interchange.load import convert, load_prior
from priorkit.prior.interchange.pth import read_pth
from priorkit.prior.model.config import PriorConfig, build_network, build_normaliser
from priorkit.prior.model.folder import save_prior
from priorkit.prior.model.prior import Prior
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings


def small_prior(seed: int = 0) -> Prior:
    """A prior that DALLE2-pytorch could have."""
    config = PriorConfig(
        embed_dim=8,
        token_width=None,
        network=NetworkSettings(width=8, depth=1, heads=2, dim_head=4, max_text_len=2),
        diffusion=DiffusionSettings(timesteps=20),
        clip={},
        clip_settings={},
    )
    network = build_network(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return Prior(config, network, build_normaliser(config))


def write_folder(prior: Prior, url: str) -> str:
    save_prior(Store(url).create, prior.config, prior.network, prior.normaliser)
    return url


def assert_equal(found: Prior, expected: Prior) -> None:
    theirs = expected.network.state_dict()
    assert found.network.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in found.network.state_dict().items())


EMA, ONLINE = small_prior(1), small_prior(2)


@pytest.fixture
def settings(tmp_path: Path) -> str:
    """Settings of both priors, as a JSON file."""
    path = tmp_path / "prior_config.json"
    path.write_text(json.dumps({"prior": to_dalle2_config(EMA.config), "train": {"lr": 1}}))
    return str(path)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a checkpoint with some of the parts that trainers store."""

    def write(name: str = "a.pth", **changes: Any) -> str:
        content = {
            "version": "1.15.6", "step": 3, "model": export_weights(ONLINE), "ema_model": export_weights(EMA),
            "ema": {"initted": torch.tensor(True)}, **changes,
        }  # fmt: skip
        torch.save({key: value for key, value in content.items() if value is not None}, tmp_path / name)
        return str(tmp_path / name)

    return write


def test_both_weights_are_there(write: Callable[..., str], settings: str) -> None:
    assert_equal(load_prior(write(), config=settings), EMA)
    assert_equal(load_prior(write(), config=settings, weights="ema"), EMA)
    assert_equal(load_prior(write("a.pt"), config=settings, weights="online"), ONLINE)


def test_the_public_names(write: Callable[..., str], settings: str, tmp_path: Path) -> None:
    assert_equal(public_load_prior(write(), config=settings), EMA)
    public_convert(write(), str(tmp_path / "prior"), config=settings)
    assert_equal(public_load_prior(str(tmp_path / "prior")), EMA)
    assert_equal(public_load_prior(tmp_path / "prior"), EMA)


def test_the_averaged_weights_of_older_trainers(write: Callable[..., str], settings: str) -> None:
    inside = {f"ema_model.{name}": value for name, value in export_weights(EMA).items()}
    inside |= {f"online_model.{name}": value for name, value in export_weights(ONLINE).items()}
    assert_equal(load_prior(write(ema_model=None, ema={**inside, "step": torch.tensor(1)}), config=settings), EMA)


def test_a_bare_state_dict_needs_the_version(settings: str, tmp_path: Path) -> None:
    path = str(tmp_path / "bare.pth")
    torch.save(collections.OrderedDict(export_weights(EMA)), path)
    with pytest.raises(SettingsError, match=r"bare\.pth: stores no version; give function_version=.*0\.23\.10"):
        load_prior(path, config=settings)
    assert_equal(load_prior(path, config=settings, function_version="1.15.6"), EMA)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 1},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {name.removeprefix("net."): v for name, v in state.items() if name.startswith("net.")},
    ],
    ids=["state_dict", "module", "both", "network alone"],
)
def test_a_state_dict_as_other_tools_save_it_is_read(wrap: Callable[..., Any], settings: str, tmp_path: Path) -> None:
    path = str(tmp_path / "theirs.pth")
    torch.save(wrap(export_weights(EMA)), path)
    assert_equal(load_prior(path, config=settings, function_version="1.15.6"), EMA)


def test_the_message_for_another_state_dict_says_what_to_save(settings: str, tmp_path: Path) -> None:
    path = str(tmp_path / "theirs.pth")
    for content in ({"state_dict": {"prior.a": torch.ones(1)}}, {"lightning.net.a": torch.ones(1)}):
        torch.save(content, path)
        with pytest.raises(InputError, match=r"save the prior's state_dict alone, with names that begin with net\."):
            load_prior(path, config=settings, function_version="1.15.6")


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("a.ckpt", "if it is one, rename it to .pth"), ("A.PTH", "rename it to .pth"), ("a.bin", "rename it to .pth"),
        ("model.safetensors", "name the folder of this file"),
    ],
)  # fmt: skip
def test_the_message_for_another_file_ending_says_what_to_do(
    name: str, named: str, settings: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"x")
    for options in ({}, {"config": settings}):
        with pytest.raises(SettingsError, match=named):
            load_prior(tmp_path / name, **options)


def test_a_file_without_a_version_asks_for_it(write: Callable[..., str], settings: str) -> None:
    with pytest.raises(SettingsError, match=r"a\.pth: stores no version; give function_version="):
        load_prior(write(version=None), config=settings)
    found = load_prior(write(version=None), config=settings, function_version="1.14.0")
    assert found.config.network.function_version == "1.14.0"


def test_the_version_of_the_file_applies_unless_another_is_given(write: Callable[..., str], settings: str) -> None:
    versions = {
        load_prior(write(version=version), config=settings, function_version=given).config.network.function_version
        for version, given in (("1.14.2", None), ("1.15.6", "1.14.2"), (3, "1.14.2"))
    }
    assert versions == {"1.14.2"}


@pytest.mark.parametrize(
    ("version", "named"),
    [
        ("2.0.0", r"dalle2-pytorch 2\.0\.0: releases 0\.23\.3 to 1\.15\.6 are known"),
        ("0.23.2", r"dalle2-pytorch 0\.23\.2: releases"),
        ("1.11.0", r"dalle2-pytorch 1\.11\.0 trained v on a target of the wrong sign"),
        ("newest", r"'newest' is not a release of dalle2-pytorch, such as 1\.15\.6"),
        ("", "'' is not a release"),
    ],
)
def test_an_unknown_release_is_named(version: str, named: str, write: Callable[..., str], settings: str) -> None:
    for arguments in ({"function_version": version}, {}):
        path = write(version=version)
        with pytest.raises(SettingsError, match=rf"a\.pth: function_version: {named}"):
            load_prior(path, config=settings, **arguments)


def test_a_version_of_an_unknown_kind_is_named(write: Callable[..., str], settings: str) -> None:
    with pytest.raises(InputError, match=r"a\.pth: its version is of an unknown kind \(3\); give function_version="):
        load_prior(write(version=3), config=settings)


@pytest.mark.parametrize(
    ("changes", "weights", "named"),
    [
        ({"ema_model": None}, "ema", r"holds no ema weights \(`ema_model`\) but .*model, step.*; try weights=online$"),
        ({"model": None}, "online", r"holds no online weights \(`model`\) but .*ema_model.*; try weights=ema$"),
        ({"model": None, "ema_model": None}, "ema", r"holds no ema weights \(`ema_model`\) but ema, step, version$"),
        ({"ema_model": {}}, "ema", "holds no ema weights"),
        ({"ema_model": [1]}, "ema", "holds no ema weights"),
        ({"ema_model": torch.ones(3)}, "ema", "holds no ema weights"),
        ({"ema_model": {1: torch.ones(3)}}, "ema", "holds no ema weights"),
        ({"ema_model": {"net.a": 3}}, "ema", "holds no ema weights"),
        ({"ema_model": None, "ema": [1]}, "ema", "holds no ema weights"),
        ({"ema_model": {"other": torch.ones(3)}}, "ema", r"lacks net\.learned_query.* and also holds other"),
        ({7: 1, "ema_model": None}, "ema", "holds no ema weights .* but 7, ema"),
        ({}, "average", "weights='average': known are ema and online"),
    ],
)
def test_weights_that_are_not_there_are_named(
    changes: dict[Any, Any], weights: Any, named: str, write: Callable[..., str], settings: str, tmp_path: Path
) -> None:
    write()
    content = {**read_pth(str(tmp_path / "a.pth")), **changes}
    path = tmp_path / "b.pth"
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    with pytest.raises(PriorkitError, match=named):
        load_prior(str(path), config=settings, weights=weights)


def test_a_checkpoint_needs_its_settings(write: Callable[..., str]) -> None:
    with pytest.raises(SettingsError, match=r"a\.pth: give config=, the JSON .*, or one of laion-model-card"):
        load_prior(write())


@pytest.mark.parametrize("config", ["nothing.json", "a.pth/x.json", ".", "laion", "memory://nothing.json"])
def test_settings_that_are_not_there_are_named(
    config: str, write: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write()
    with pytest.raises(SettingsError, match=r"config='.+': neither a file nor one of laion-model-card"):
        load_prior(path, config=config)


@pytest.mark.parametrize("text", [b"", b"net: {dim: 8}", b"\xff\xfe", b'{"net": '])
def test_settings_that_are_no_json_are_named(text: bytes, write: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(text)
    with pytest.raises(InputError, match=r"bad\.json: not JSON \("):
        load_prior(write(), config=str(tmp_path / "bad.json"))


def test_settings_are_read_before_a_large_file_is(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"net": {"dim": 8, "dept": 3}}')
    with pytest.raises(SettingsError, match=r"net\.dept: unknown key; did you mean 'depth'"):
        load_prior(str(tmp_path / "nothing.pth"), config=str(tmp_path / "bad.json"))


def test_a_named_config_is_not_read_from_a_file(write: Callable[..., str]) -> None:
    with pytest.raises(InputError, match=r"a\.pth: .*laion|does not fit|its settings make \["):
        load_prior(write(), config="laion-model-card")


def test_missing_files_are_named(settings: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.pth: no such file"):
        load_prior(str(tmp_path / "nothing.pth"), config=settings)
    with pytest.raises(InputError, match="nothing: no prior is there"):
        load_prior(str(tmp_path / "nothing"))


def test_a_folder_without_checkpoints_has_no_online_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weights='online' are in a training's checkpoints, and there are none"):
        load_prior(write_folder(EMA, str(tmp_path / "prior")), weights="online")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"config": "a.json"}, r"config= belongs to checkpoints \(\.pth or \.pt\); .*prior is none"),
        ({"function_version": "1.15.6"}, "function_version= belongs to checkpoints"),
        ({"clip": {"model": "ViT-B-32"}}, "clip= belongs to checkpoints"),
        ({"weights": "newest"}, "weights='newest': known are ema, online and best"),
        ({"dtype": "float16"}, "dtype='float16': known are float32, bfloat16"),
    ],
)
def test_options_that_do_not_apply_to_a_folder_are_refused(
    arguments: dict[str, Any], named: str, tmp_path: Path
) -> None:
    path = write_folder(EMA, str(tmp_path / "prior"))
    with pytest.raises(SettingsError, match=named):
        load_prior(path, **arguments)


def test_the_dtype_applies_to_both(write: Callable[..., str], settings: str, tmp_path: Path) -> None:
    folder = write_folder(EMA, str(tmp_path / "prior"))
    for prior in (load_prior(folder, dtype="bfloat16"), load_prior(write(), dtype="bfloat16", config=settings)):
        assert prior.network.to_embed.weight.dtype == torch.bfloat16


def test_a_clip_that_is_given_is_kept(write: Callable[..., str], settings: str, tmp_path: Path) -> None:
    clip = {"model": "ViT-B-32", "pretrained": "openai"}
    assert load_prior(write(), config=settings).config.clip_settings == {}
    assert load_prior(write(), config=settings, clip=clip).config.clip_settings == clip
    convert(write(), str(tmp_path / "prior"), config=settings, clip=clip)
    assert load_prior(str(tmp_path / "prior")).config.clip_settings == clip


@pytest.mark.parametrize(
    ("clip", "named"),
    [
        ({"modell": "ViT-B-32"}, "clip: modell: unknown key; did you mean 'model'"),
        ({"model": "ViT-L-14"}, "clip: .*pretrained is needed for 'ViT-L-14'"),
        ({"model": "hf-hub:a/b", "pretrained": "x"}, "brings its own weights"),
    ],
)
def test_a_clip_that_does_not_exist_is_named(
    clip: dict[str, Any], named: str, write: Callable[..., str], settings: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        load_prior(write(), config=settings, clip=clip)


def test_there_and_back_is_exact(tmp_path: Path) -> None:
    folder = write_folder(EMA, str(tmp_path / "prior"))
    convert(folder, str(tmp_path / "new/out.pth"))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out.json", "out.pth"]
    convert(str(tmp_path / "new/out.pth"), str(tmp_path / "again"), config=str(tmp_path / "new/out.json"))
    again = load_prior(str(tmp_path / "again"))
    assert_equal(again, EMA)
    assert again.config == EMA.config
    files = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert files == ["config.json", "model.safetensors"]
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "prior" / name).read_bytes()


def test_an_export_is_plain_and_stores_weights_once(tmp_path: Path) -> None:
    folder = write_folder(EMA, str(tmp_path / "prior"))
    convert(folder, str(tmp_path / "out.pt"))
    content = torch.load(tmp_path / "out.pt", weights_only=True)  # by torch alone
    assert content["version"] == "1.15.6"
    once = sum(value.numel() * 4 for value in content["model"].values())
    assert (tmp_path / "out.pt").stat().st_size < 1.5 * once + 40_000
    for name, value in content["model"].items():
        assert torch.equal(content["ema_model"][name], value)
        assert torch.equal(content["ema"][f"ema_model.{name}"], value)
        assert torch.equal(content["ema"][f"online_model.{name}"], value)


def test_everything_may_be_remote(write: Callable[..., str], settings: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/c/a.pth", Path(write()).read_bytes())
    memory.pipe("/c/a.json", Path(settings).read_bytes())
    assert_equal(load_prior("memory://c/a.pth", config="memory://c/a.json"), EMA)
    convert("memory://c/a.pth", "memory://c/prior", config="memory://c/a.json")
    assert_equal(load_prior("memory://c/prior"), EMA)
    for target in ("memory://c/more/out.pth", "memory://top.pth"):
        convert("memory://c/prior", target)
        assert_equal(load_prior(target, config=target.replace(".pth", ".json")), EMA)
        with pytest.raises(FolderError, match=r"\.pth exists"):
            convert("memory://c/prior", target)


def test_a_relative_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(EMA, "prior")
    convert("prior", "out.pth")
    convert("out.pth", "again", config="out.json")
    assert_equal(load_prior("again"), EMA)


def test_existing_files_are_kept_without_overwrite(write: Callable[..., str], settings: str, tmp_path: Path) -> None:
    folder, other = str(tmp_path / "prior"), write_folder(ONLINE, str(tmp_path / "other"))
    convert(write(), folder, config=settings)
    with pytest.raises(FolderError, match="prior holds a prior; choose another folder, or --overwrite"):
        convert(write(), folder, config=settings, weights="online")
    assert_equal(load_prior(folder), EMA)
    convert(write(), folder, config=settings, weights="online", overwrite=True)
    assert_equal(load_prior(folder), ONLINE)

    out = str(tmp_path / "out.pth")
    convert(folder, out)
    before = Path(out).read_bytes()
    for removed in ("out.json", "out.pth"):
        (tmp_path / removed).rename(tmp_path / "aside")
        with pytest.raises(FolderError, match=r"out\.(pth|json) exists; choose another name, or --overwrite"):
            convert(other, out)
        (tmp_path / "aside").rename(tmp_path / removed)
    assert Path(out).read_bytes() == before
    convert(other, out, overwrite=True)
    assert_equal(load_prior(out, config=str(tmp_path / "out.json")), ONLINE)


@pytest.mark.parametrize("name", ["manifest.json", "state/step_000000010.safetensors"])
def test_the_folder_of_a_training_is_never_written_to(
    name: str, write: Callable[..., str], settings: str, tmp_path: Path
) -> None:
    (tmp_path / "prior/state").mkdir(parents=True)
    (tmp_path / "prior" / name).write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(FolderError, match="prior is the folder of a training; choose another"):
            convert(write(), str(tmp_path / "prior"), config=settings, overwrite=overwrite)
    assert not (tmp_path / "prior/config.json").exists()


def test_a_file_in_the_way_is_named(write: Callable[..., str], settings: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for destination in ("file", "file/prior", "file/out.pth"):
        with pytest.raises(FolderError, match=r"file.* is in the way"):
            convert(write(), str(tmp_path / destination), config=settings)
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(FolderError, match=r"folder\.pth.* is in the way|folder\.pth exists"):
        convert(write(), str(tmp_path / "folder.pth"), config=settings)


@pytest.mark.parametrize("name", ["two words.pth", "größe.pth", "-a.pth", ".pth"])
def test_a_name_that_a_store_does_not_take_is_explained(
    name: str, write: Callable[..., str], settings: str, tmp_path: Path
) -> None:
    source = write()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SettingsError, match="name the file with letters, digits"):
        convert(source, str(tmp_path / name), config=settings)
    assert sorted(tmp_path.iterdir()) == before


def test_a_prior_that_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    config = EMA.config.model_copy(update={"diffusion": DiffusionSettings(timesteps=20, normaliser="standardise")})
    folder = write_folder(Prior(config, EMA.network, build_normaliser(config)), str(tmp_path / "prior"))
    with pytest.raises(SettingsError, match="dalle2-pytorch has no such prior: normaliser=standardise"):
        convert(folder, str(tmp_path / "out.pth"))
    assert [path.name for path in tmp_path.iterdir()] == ["prior"]


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(EMA, str(tmp_path / "prior"))

    def save(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="no space left"):
        convert(folder, str(tmp_path / "out.pth"))
    assert not [path for path in tmp_path.iterdir() if "pth" in path.name]


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value.to("meta"),
        lambda value: value.to_sparse(),
        lambda value: value.to(torch.complex64),
        lambda value: torch.full_like(value, float("nan")),
    ],
)
def test_weights_that_are_not_finite_dense_tensors_are_refused(
    write: Callable[..., str], settings: str, damage: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    weights = {
        name: damage(value) if name.endswith("learned_query") else value for name, value in export_weights(EMA).items()
    }
    refused = r"a\.pth: (holds no ema weights|net\.learned_query holds numbers that|cannot be read)"
    with pytest.raises(InputError, match=refused):
        load_prior(write(ema_model=weights), config=settings)
