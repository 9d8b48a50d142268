"""Recipes: loading, validation, overrides and copies, and the CLIP that a recipe names."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

import priorkit
from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.contract.commit import open_stage
from priorkit.pipeline.contract.manifest import Manifest
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.errors import InputError, SettingsError
from priorkit.prior.model.config import PriorConfig, build_network
from priorkit.recipes.chain import _refuse_settings_without_effect
from priorkit.recipes.recipe import Recipe, copy_recipe, load_recipe, recipe_names, recipe_text, require_same_clip

ROOT = Path(priorkit.__file__).parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def write_recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_recipe_file_is_listed() -> None:
    assert {path.stem for path in RECIPES} >= {"demo", "custom"}
    assert set(recipe_names()) == {path.stem for path in RECIPES if path.parent.name == "recipes"}


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_loads_by_path_and_by_name(path: Path) -> None:
    recipe = load_recipe(str(path))
    assert recipe == load_recipe(path.stem)
    written = yaml.safe_load(path.read_text())
    assert recipe.train.steps == written["train"]["steps"]
    assert recipe_text(path.stem) == path.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_starts_with_command_hardware_duration_and_expectation(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Command:", "Hardware:", "Duration:", "Expected:"):
        assert any(word in line for line in head), word


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_names_the_family_of_its_network(path: Path) -> None:
    """The name shows readers which settings there are. Prior folders made without it are continued."""
    written = yaml.safe_load(path.read_text())["train"]
    assert "family" in written.get("network", {}) or "init_from" in written
    if written.get("network", {}).get("family") == "causal-transformer":
        assert "family" not in load_recipe(str(path)).train.identity()["network"]


def test_kandinsky_s_recipe_has_the_size_of_its_prior() -> None:
    recipe = load_recipe("kandinsky22")
    config = PriorConfig(
        embed_dim=1280, token_width=1280, network=recipe.train.network, diffusion=recipe.train.diffusion, clip={},
        clip_settings={},
    )  # fmt: skip
    with torch.device("meta"):
        weights = sum(each.numel() for each in build_network(config).parameters())
    assert weights + 2 * 1280 == 1_026_225_920  # with clip_mean and clip_std, which are parameters in diffusers


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_dumped_recipe_is_the_same_recipe(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(path))
    dumped = write_recipe(tmp_path, yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(dumped) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_described_recipe_begins_with_the_same_stage(path: Path, tmp_path: Path) -> None:
    """`recipes validate` prints it; it holds nothing that the run would refuse as without effect."""
    recipe = load_recipe(str(path))
    again = load_recipe(write_recipe(tmp_path, yaml.safe_dump(recipe.described())))
    assert again.first_stage == recipe.first_stage
    assert again.described() == recipe.described()
    _refuse_settings_without_effect(again, again.first_stage, None)


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("", "download"),
        ("folders: {prior: p, evaluation: e}", "download"),
        ("urls: a.csv\nfolders: {images: i, embeddings: e}", "download"),
        ("folders: {images: i, embeddings: e}", "embed"),
        ("folders: {embeddings: e, prior: p}", "train"),
        ("urls: null\nfolders: {embeddings: e}", "train"),
    ],
)
def test_a_recipe_begins_with_the_folder_that_it_names(tmp_path: Path, text: str, stage: str) -> None:
    recipe = load_recipe(write_recipe(tmp_path, text))
    assert recipe.first_stage == stage
    assert recipe.url_list == ("a.csv" if "a.csv" in text else "urls.parquet")


def test_the_clip_of_own_embeddings_is_described_only_if_it_is_declared(tmp_path: Path) -> None:
    bare = load_recipe(write_recipe(tmp_path, "folders: {embeddings: e}"))
    assert not {"urls", "download", "embed"} & bare.described().keys()
    assert "images" not in bare.described()["folders"]
    named = load_recipe("own-embeddings").described()
    assert named["embed"]["clip"]["model"] == "ViT-B-32"
    assert set(named["embed"]) == {"clip"}


def test_an_empty_recipe_has_the_defaults(tmp_path: Path) -> None:
    assert load_recipe(None) == Recipe()
    assert load_recipe(write_recipe(tmp_path, "")) == Recipe()
    assert load_recipe(write_recipe(tmp_path, "# nothing but a comment\n")) == Recipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {}", r"trian: unknown key; did you mean 'train'\?"),
        ("train: {network: {widht: 3}}", r"train\.network\.widht: unknown key; did you mean 'width'\?"),
        (
            "train: {learning_rate: 3}",
            r"train\.learning_rate: unknown key; did you mean 'train\.optimiser\.learning_rate'\?",
        ),
        ("evaluate: {sample: {stepz: 3}}", r"evaluate\.sample\.stepz: unknown key; did you mean 'steps'\?"),
        ("train: {steps: many}", r"train\.steps: .*integer.*'many'"),
        ("train: {steps: 0}", r"train\.steps: .*greater than or equal to 1.*got 0"),
        ("train: {network: {dim_head: 15}}", r"train\.network: dim_head=15 must be even for rotary_emb"),
        ("train: {diffusion: {embed_scale: 1, normaliser: whiten}}", r"train\.diffusion: embed_scale has no meaning"),
        ("train: {network: {function_version: 1.8.4}}", r"train: dalle2-pytorch 1\.8\.4 had nothing in place of what"),
        ("evaluate: {sample: {sampler: dpm}}", r"evaluate\.sample\.sampler: .*'dpmsolver\+\+'.*'dpm'"),
        ("train: {diffusion: {prediction: x1}}", r"train\.diffusion\.prediction: .*'x0', 'eps' or 'v'.*'x1'"),
        ("evaluate: {draws: 1}", r"evaluate\.draws: .*2.*got 1"),
        ("train: 7", r"train: .*got 7"),
        ("3: 4", r"3"),
    ],
)
def test_wrong_keys_and_values_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write_recipe(tmp_path, text)
    with pytest.raises(SettingsError, match=message) as raised:
        load_recipe(path)
    assert str(raised.value).startswith(path)


def test_all_problems_are_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"urlz.*train\.stepz|train\.stepz.*urlz"):
        load_recipe(write_recipe(tmp_path, "urlz: a\ntrain: {stepz: 1}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [1, 2", r"recipe\.yaml: not YAML"),
        ("train: {steps: 1}\ntrain: {steps: 2}", r"recipe\.yaml: not YAML .*key 'train' stands twice"),
        ("a: b: c", r"recipe\.yaml: not YAML"),
        ("!!python/object/apply:os.system ['touch /tmp/owned']", r"recipe\.yaml: not YAML"),
        ("- urls", r"recipe\.yaml: a recipe is a mapping of sections, this is a list"),
        ("hello", r"recipe\.yaml: a recipe is a mapping of sections, this is a str"),
        ("a: \x00", r"recipe\.yaml: not YAML"),
    ],
)
def test_yaml_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(write_recipe(tmp_path, text))


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such recipe file.*recipes list"):
        load_recipe(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(InputError, match="not a recipe file"):
        load_recipe(str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"urls: \xff\xfe")
    with pytest.raises(InputError, match=r"binary\.yaml: not YAML \(not UTF-8: byte 0xff at 6\)"):
        load_recipe(str(tmp_path / "binary.yaml"))


def test_a_recipe_may_be_remote() -> None:
    Store("memory://recipes-test").write_json("remote.yaml", {"train": {"steps": 77}})  # JSON is YAML
    assert load_recipe("memory://recipes-test/remote.yaml").train.steps == 77


def test_a_recipe_may_be_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "recipe.yaml"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("train: {steps: 77}",), daemon=True)
    writer.start()
    assert load_recipe(str(pipe)).train.steps == 77
    writer.join()


def test_overrides_win_and_are_yaml(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "train: {steps: 5, network: {width: 64}}")
    overrides = [
        "train.steps=9",
        "train.network.heads=4",
        "evaluate.sample.sampler=ddpm",
        "embed.token_states=yes",
        "folders.prior=elsewhere/prior",
        "train.optimiser.learning_rate=1.0e-3",
        "download.caption_column=null",
    ]
    recipe = load_recipe(path, overrides)
    assert (recipe.train.steps, recipe.train.network.width, recipe.train.network.heads) == (9, 64, 4)
    assert recipe.evaluate.sample.sampler == "ddpm"
    assert recipe.embed.token_states is True
    assert recipe.folders.prior == "elsewhere/prior"
    assert recipe.train.optimiser.learning_rate == 1e-3
    assert recipe.download.caption_column is None
    assert load_recipe(path).train.steps == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "--set train.steps: expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("train.stepz=3", r"with --set: train\.stepz: unknown key; did you mean 'steps'"),
        ("urls.x=3", "urls is a value"),
        ("train.steps=[1", "the value is not YAML"),
        ("train.steps=few", r"with --set: train\.steps: .*'few'"),
    ],
)
def test_wrong_overrides_are_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_recipe(write_recipe(tmp_path, "urls: a.txt"), [override])


def test_copying_writes_the_text_and_refuses_to_overwrite(tmp_path: Path) -> None:
    assert copy_recipe("custom", tmp_path) == tmp_path / "custom.yaml"
    assert (tmp_path / "custom.yaml").read_text() == recipe_text("custom")
    named = copy_recipe("custom", tmp_path / "mine.yaml")
    assert load_recipe(str(named)) == load_recipe("custom")
    named.write_text("precious")
    for destination in (named, tmp_path):
        with pytest.raises(InputError, match="exists already; name another file"):
            copy_recipe("custom", destination)
    assert named.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["custom.yaml", "mine.yaml"]


def test_the_message_about_an_unknown_name_lists_the_recipes(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"no recipe 'laoin'; there are cc12m, custom, demo, finetune, finetune-kandinsky, ip-adapter-prior, k",
    ):
        copy_recipe("laoin", tmp_path)


# the CLIP of a recipe


@pytest.fixture
def embeddings(tiny_clip: Path, tmp_path: Path) -> str:
    """Folder of embeddings whose manifest records the tiny CLIP."""
    from priorkit.pipeline.clip.encoder import clip_source

    store = Store(str(tmp_path / "embeddings"))
    source = clip_source(ClipSettings(model=f"local-dir:{tiny_clip}"))
    with open_stage(store, Manifest("embed", {}, input={}, about={"clip": {"source": source}})) as folder:
        folder.finish()
    return str(tmp_path / "embeddings")


def test_the_clip_of_the_embeddings_is_accepted_from_any_folder(
    embeddings: str, tiny_clip: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in tiny_clip.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    for folder in (tiny_clip, moved):
        require_same_clip(Recipe(embed=EmbedSettings(clip=ClipSettings(model=f"local-dir:{folder}"))), embeddings)


def test_a_recipe_without_a_clip_accepts_any_embeddings(embeddings: str) -> None:
    require_same_clip(load_recipe(None), embeddings)
    require_same_clip(load_recipe(None, ["embed.batch_size=3"]), embeddings)


def test_another_clip_is_refused_and_named(embeddings: str, tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"CLIP, ViT-B-32 \(.*not the one that made .*, local-dir \(.*embed\.clip"):
        require_same_clip(load_recipe(None, ["embed.clip.model=ViT-B-32"]), embeddings)
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_clip.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config = json.loads((other / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0, 0, 0]
    (other / "open_clip_config.json").write_text(json.dumps(config))
    recipe = Recipe(embed=EmbedSettings(clip=ClipSettings(model=f"local-dir:{other}")))
    with pytest.raises(SettingsError, match=r"open_clip_config\.json"):
        require_same_clip(recipe, embeddings)


def test_missing_embeddings_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no result of `priorkit embed`"):
        require_same_clip(load_recipe(None, ["embed.clip.model=ViT-B-32"]), str(tmp_path / "nowhere"))


def test_embeddings_without_a_recorded_clip_are_refused(tmp_path: Path) -> None:
    recipe = load_recipe(None, ["embed.clip.model=priorkit:demo"])
    with open_stage(Store(str(tmp_path)), Manifest("embed", {}, input={}), overwrite=False):
        pass  # like `priorkit embed` if it cannot load the weights
    with pytest.raises(InputError, match="ended before it had a CLIP; run it again"):
        require_same_clip(recipe, str(tmp_path))


def test_the_same_weights_in_another_file_format_are_accepted(tiny_clip: Path, tmp_path: Path) -> None:
    from priorkit.pipeline.clip.encoder import clip_source, identify_clip

    made_by = ClipSettings(model=f"local-dir:{tiny_clip}")
    about = {"clip": {"source": clip_source(made_by), "embed_dim": 16, **identify_clip(made_by)}}
    with open_stage(Store(str(tmp_path / "embeddings")), Manifest("embed", {}, input={}, about=about)) as folder:
        folder.finish()
    weights = safetensors.torch.load_file(tiny_clip / "open_clip_model.safetensors")
    for name, factor in (("same", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "open_clip_config.json").write_bytes((tiny_clip / "open_clip_config.json").read_bytes())
        weights["text_projection"] = weights["text_projection"] * factor
        torch.save(weights, tmp_path / name / "epoch_1.pt")
        recipe = Recipe(embed=EmbedSettings(clip=ClipSettings(model=f"local-dir:{tmp_path / name}")))
        if name == "same":
            require_same_clip(recipe, str(tmp_path / "embeddings"))
        else:
            with pytest.raises(SettingsError, match=r"epoch_1\.pt of SHA-256 .* is not the one that made"):
                require_same_clip(recipe, str(tmp_path / "embeddings"))
