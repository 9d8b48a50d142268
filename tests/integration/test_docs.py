"""Every command and snippet of the documentation, run as it stands, in a working directory where a reader could be.

Three things differ from what a reader types. A recipe that is copied is then edited, as the pages say: here into a tiny
one. And a command that is given no recipe of the reader's gets the settings of that tiny one, by `--set`, ahead of what
it says itself. And names on the hub become folders of tiny pipelines, which draw in 2 steps instead of 50.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from priorkit.cli import app
from priorkit.pipeline.download.img2dataset_engine.limits import LIMITS
from priorkit.pipeline.settings import parse_settings
from priorkit.recipes.recipe import Recipe, recipe_names

from ..tiny_decoders import write_embeds, write_ip_adapter, write_pipeline
from ..unit.test_house import pyproject
from .command_server import CommandServer
from .conftest import RECIPE, Finished, Workspace, environment
from .snippets import NEEDS, ROOT, Block, blocks_of, pages

PAGES = pages()
BLOCKS = {name: list(blocks_of(name, path.read_text(encoding="utf-8"))) for name, path in PAGES.items()}
FROM_THE_LIST = {"README.md", "docs/pages/quickstart.md", "docs/pages/recipes.md"}
"""Pages that start with a list of URLs and nothing else; the others are read by who has been through the stages."""
SECTIONS = {"download": ["download"], "embed": ["embed"], "train": ["train", "read", "embed"], "evaluate": ["evaluate"]}
"""What the commands that take settings read."""
MY_RECIPE = "my_recipe.yaml"
DRAWS = "docs/pages/decoders.md"
"""Page whose blocks draw pictures."""
HUB = {
    "kandinsky-community/kandinsky-2-2-decoder": "kandinsky-2.2",
    "kandinsky-community/kandinsky-2-1": "kandinsky-2.1",
    "kakaobrain/karlo-v1-alpha-image-variations": "karlo",
    "stabilityai/stable-diffusion-2-1-unclip-small": "stable-unclip",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "ip-adapter",
}
"""Names on the hub, and the tiny decoders that stand in for them."""
ADAPTER = "h94/IP-Adapter"
STEPS = {"num_inference_steps=50": "num_inference_steps=2", "--steps 50": "--steps 2"}
WIDTH = 16
"""Of the network: the size of the tiny CLIP's embeddings, as DALLE2-pytorch needs it."""


def runs(block: Block) -> bool:
    return block.language in ("bash", "python") and block.needs in (None, "time")


def test_the_documentation_runs() -> None:
    executed = [
        number
        for blocks in BLOCKS.values()
        for block in blocks
        if runs(block)
        for number in (range(len(block.commands)) if block.language == "bash" else [0])
    ]
    assert len(executed) >= 40
    assert {name for name, blocks in BLOCKS.items() if any(map(runs, blocks))} >= FROM_THE_LIST


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```\nls\n```", "a block of no language"),
        ("```sh\nls\n```", "a block of sh"),
        ("Say\n\n    ls", "an indented block"),
        ("```bash\nls", "does not end"),
        ("<!-- needs: luck -->\n```bash\nls\n```", "needs luck"),
    ],
)
def test_what_is_neither_run_nor_marked_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        list(blocks_of("page", text))


def test_blocks_are_found_with_their_marks() -> None:
    text = "Say\n\n```bash\na  # b\nc 'd e' \\\n  f\n```\n<!-- needs: internet -->\n```python\nimport x\n```\n"
    text += "- list\n\n  ```text\n  z\n  ```\n"
    first, second, third = blocks_of("page", text)
    assert first.commands == [["a"], ["c", "d e", "f"]]
    assert (second.needs, second.text, second.place) == ("internet", "import x\n", "page:9")
    assert (third.language, third.text) == ("text", "z\n")


@pytest.fixture(scope="module")
def tiny_recipe(tiny_clip: Path) -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load(RECIPE.format(clip=tiny_clip))
    recipe["embed"]["clip"]["pretrained"] = None  # the recipes that are shipped have one
    recipe["train"]["network"]["width"] = WIDTH
    recipe["train"].update(steps=6, validate_every=3)
    recipe["evaluate"]["splits"] = ["test"]
    return recipe


@pytest.fixture(scope="module")
def prepared(
    finished: Finished, tiny_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], None]:
    """Fills a folder with what a reader has who has been through the stages."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(finished.workspace.folder("download"), folder / "data/images")
    shutil.copytree(finished.workspace.folder("embed"), folder / "data/embeddings")
    (folder / MY_RECIPE).write_text(yaml.safe_dump(tiny_recipe))
    of_embeddings = {name: tiny_recipe[name] for name in ("read", "train")}
    (folder / "prior.yaml").write_text(yaml.safe_dump(of_embeddings))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        invoke(["train", MY_RECIPE])
        invoke(["evaluate", "--recipe", MY_RECIPE])
        invoke(["convert", "data/prior", "prior.pth"])
        (folder / "prior.json").rename(folder / "config.json")
    (folder / "captions.txt").write_text("a red square\na blue square\n")
    shutil.copy(folder / "data/embeddings/text_emb/text_emb_0000.npy", folder / "text_embeddings.npy")
    return lambda target: shutil.copytree(folder, target, dirs_exist_ok=True)


@pytest.fixture
def world(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the list of URLs, in a checkout."""
    (workspace.path / "recipe.yaml").unlink()
    (workspace.path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(workspace.path)
    return workspace.path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, str]]:
    """Writes the files that a reader has sampled into a folder, and returns what stands in for parts of the blocks."""
    folder = tmp_path_factory.mktemp("hub")
    folders = {name: str(folder / target) for name, target in HUB.items()} | {ADAPTER: str(folder / "adapters")}

    def fill(world: Path) -> dict[str, str]:
        if not any(folder.iterdir()):
            (folder / "adapters/models").mkdir(parents=True)
            write_ip_adapter(folder / "adapters/models/ip-adapter_sd15.safetensors")
            for target in HUB.values():
                write_pipeline(target, folder / target)
        for target in HUB.values():
            name = target.replace("-", "_").replace("kandinsky_2.", "kandinsky2")
            write_embeds(world / f"{name}.safetensors", target, rows=1)
        return folders | STEPS

    return fill


def invoke(words: list[str]) -> None:
    """Run a command in this process."""
    result = CliRunner().invoke(app, words, env={"COLUMNS": "160"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output


def invoke_apart(words: list[str], commands: CommandServer) -> None:
    """Run a command in a process of its own."""
    done = commands.run(words, Path.cwd(), environment())
    assert done.returncode == 0, done.stdout + done.stderr


def given(words: list[str], recipe: dict[str, Any]) -> list[str]:
    """A command with the tiny settings ahead of its own, where it names no recipe of the reader's."""
    name, *rest = words
    shipped = [word for word in rest if word in recipe_names()]
    reads = SECTIONS["train"] + SECTIONS["evaluate"] if name == "run" else SECTIONS.get(name, [])
    if MY_RECIPE in rest or (name in ("train", "run", "status") and not shipped):
        reads = []
    settings = [pair for section in reads for pair in flat(section, recipe[section])]
    if "download.engine=img2dataset" in rest:  # it refuses some settings of the tiny recipe
        settings = [pair for pair in settings if pair.split("=")[0].removeprefix("download.") not in LIMITS]
    return [name, *(word for pair in settings for word in ("--set", pair)), *rest]


def flat(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(f"{name}.{key}", inner)
    else:
        yield f"{name}={json.dumps(value)}"


def run_block(block: Block, recipe: dict[str, Any], namespace: dict[str, Any], commands: CommandServer) -> None:
    if block.language == "python":
        with redirect_stdout(io.StringIO()):
            exec(compile("\n" * block.line + block.text, block.page, "exec"), namespace)
        return
    for program, *words in block.commands:
        assert program == "priorkit", f"{block.place}: {program} is run by no test; mark what the block needs"
        in_process = block.needs is None or block.page == DRAWS  # which has loaded diffusers already
        run = invoke if in_process else partial(invoke_apart, commands=commands)
        try:
            run(given(words, recipe))
        except (Exception, AssertionError) as error:
            raise AssertionError(f"{block.place}: priorkit {' '.join(words)}: {error}") from error
        if words[:2] == ["recipes", "copy"]:
            edit(Path(words[-1]), recipe)


def edit(copied: Path, recipe: dict[str, Any]) -> None:
    """What a reader does to a recipe that was copied: other settings, and folders for what follows from them."""
    assert parse_settings(Recipe, yaml.safe_load(copied.read_text()), str(copied))
    folders = {"prior": "runs/prior", "evaluation": "runs/evaluation"}
    copied.write_text(yaml.safe_dump({**recipe, "folders": folders}))


def run_page(
    page: str, tiny_recipe: dict[str, Any], commands: CommandServer, *needs: str | None,
    renamed: dict[str, str] | None = None,
) -> None:  # fmt: skip
    namespace: dict[str, Any] = {"__name__": "snippet"}
    for block in BLOCKS[page]:
        if runs(block) and block.needs in needs:
            text = block.text
            for name, folder in (renamed or {}).items():
                text = text.replace(name, folder)
            run_block(dataclasses.replace(block, text=text), tiny_recipe, namespace, commands)


@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if any(map(runs, blocks))])
def test_a_page_runs(
    page: str, world: Path, prepared: Callable[[Path], None], tiny_recipe: dict[str, Any], commands: CommandServer
) -> None:
    if page not in FROM_THE_LIST:
        prepared(world)
    run_page(page, tiny_recipe, commands, None)


TAKE_TIME = [name for name, blocks in BLOCKS.items() if any(block.needs == "time" for block in blocks)]
RUN_ELSEWHERE = "docs/pages/download.md"
"""Page whose commands `test_download_docs.py` runs too, and checks more closely."""


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in TAKE_TIME if page not in (RUN_ELSEWHERE, DRAWS)])
def test_what_takes_time_runs(
    page: str, world: Path, prepared: Callable[[Path], None], tiny_recipe: dict[str, Any], commands: CommandServer
) -> None:
    if page in FROM_THE_LIST:
        run_page(page, tiny_recipe, commands, None, "time")
    else:  # `test_a_page_runs` runs the other blocks
        prepared(world)
        run_page(page, tiny_recipe, commands, "time")


@pytest.mark.slow
def test_the_pictures_of_a_prior_are_drawn(
    world: Path, hub: Callable[[Path], dict[str, str]], tiny_recipe: dict[str, Any], commands: CommandServer
) -> None:
    """Every decoder from Python and by the command, which give pictures of their own sizes."""
    run_page(DRAWS, tiny_recipe, commands, "time", renamed=hub(world))
    for name, size in (
        ("kandinsky22", 512), ("kandinsky21", 512), ("karlo", 32), ("stable_unclip", 32), ("ip_adapter_0", 32),
    ):  # fmt: skip
        with Image.open(f"{name}.png") as picture:
            assert picture.size == (size, size)
    grids = ("corgi", "karlo_grid", "ip_adapter_grid", "pictures/000000", "pictures")
    assert all(Path(f"{name}.png").is_file() for name in grids)


EVERY_BLOCK = [block for blocks in BLOCKS.values() for block in blocks]


@pytest.mark.parametrize("block", [b for b in EVERY_BLOCK if b.needs in NEEDS], ids=lambda block: block.place)
def test_what_is_not_run_is_spelled_right(block: Block) -> None:
    """Commands of ours parse, targets and extras exist, and Python compiles."""
    if block.language == "python":
        compile(block.text, block.place, "exec")
        return
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, *words in block.commands:
        if "priorkit" in words and program in ("kubectl", "uv"):
            program, *words = words[words.index("priorkit") :]
        if program == "priorkit":
            parse(words)
        elif program == "make":
            assert set(words) <= targets, block.place
        elif program == "pip":
            named = re.findall(r"^priorkit\[(.+)\]$", "\n".join(words), re.MULTILINE)
            extras = {extra for group in named for extra in group.split(",")}
            assert extras <= set(pyproject()["project"]["optional-dependencies"]), block.place
        else:
            assert program in ("ray", "python", "git", "cd", "export", "img2dataset", "clip-retrieval"), block.place


def parse(words: list[str]) -> None:
    command: Any = get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    assert command.make_context("priorkit", rest).params


@pytest.mark.parametrize("block", [b for b in EVERY_BLOCK if b.language in ("yaml", "json")], ids=lambda b: b.place)
def test_data_is_read(block: Block) -> None:
    """Parts of a recipe are valid settings."""
    value = yaml.safe_load(block.text) if block.language == "yaml" else json.loads(block.text)
    if set(value) & set(Recipe.model_fields):
        assert parse_settings(Recipe, value, block.place)


def test_a_page_that_does_not_hold_fails(
    world: Path, prepared: Callable[[Path], None], tiny_recipe: dict[str, Any], commands: CommandServer
) -> None:
    prepared(world)
    for text in ("```bash\npriorkit embed --no-such-option\n```", "```bash\nls\n```", "```python\nassert 1 == 2\n```"):
        (block,) = blocks_of("page", text)
        with pytest.raises(AssertionError):
            run_block(block, tiny_recipe, {}, commands)
