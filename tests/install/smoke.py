"""Builds sdist and wheel, and runs the chain from the wheel in a fresh environment of each Python, in an empty folder.

    python tests/install/smoke.py                     every Python that is here, and the light install; a page of it
    python tests/install/smoke.py --pythons 3.12      one of them
    python tests/install/smoke.py --lowest            the oldest versions that the bounds allow, on the first Python

Needs the network or an index of packages, and 8 GB of disk at a time.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from priorkit import __version__
from priorkit.recipes.demo_list import serve

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "bench"))
import harness  # noqa: E402

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PAGE_OF_LIGHT = ROOT / "docs" / "pages" / "install.md"
HELPS = (
    "download", "embed", "train", "evaluate", "sample", "run", "report", "compare", "inspect", "status", "convert",
    "recipes", "demo", "doctor",
)  # fmt: skip
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")
ROWS = 60
EXCEPTED = {"torch", "torchvision"}
"""Not lowered: their wheels of years ago are large, and bound to other versions of each other."""


@dataclass
class Environment:
    """A fresh virtual environment, with what was measured of it."""

    folder: Path
    installer: str
    """`pip`, or `uv`, which takes a third of the time and shares files between environments."""
    figures: dict[str, Any] = field(default_factory=dict)

    def program(self, name: str) -> str:
        return str(self.folder / "venv" / "bin" / name)

    def install(self, *arguments: str) -> float:
        """Seconds that it took."""
        python, start = self.program("python"), time.perf_counter()
        command = (
            [python, "-m", "pip", "install"] if self.installer == "pip" else ["uv", "pip", "install", "-p", python]
        )
        run([*command, "--quiet", *arguments], self.folder)
        return time.perf_counter() - start

    @property
    def packages(self) -> Path:
        return next((self.folder / "venv" / "lib").glob("python3.*/site-packages"))

    def priorkit(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """What the installed command prints, in the folder of work; its seconds and memory are kept."""
        work = self.folder / "work"
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            start = time.perf_counter()
            process = subprocess.Popen(
                [self.program("priorkit"), *arguments], cwd=work, stdout=out, stderr=err, env=environment()
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - start
            out.seek(0), err.seek(0)
            printed, told = out.read(), err.read()
        if process.returncode != code:
            raise SystemExit(f"priorkit {' '.join(arguments)}: exit code {process.returncode}\n{printed}\n{told}")
        if "Traceback" in told:
            raise SystemExit(f"priorkit {' '.join(arguments)}: {told}")
        self.figures.setdefault("seconds", {}).setdefault(arguments[0], []).append(seconds)
        self.figures["peak_memory"] = max(self.figures.get("peak_memory", 0), usage.ru_maxrss * 1024)
        return printed, told


def environment() -> dict[str, str]:
    """That of a stranger: nothing of the checkout, wide tables."""
    return {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "COLUMNS": "200"}


def run(command: Sequence[str], folder: Path) -> None:
    """Run a command; what it prints is shown if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")


def find_python(version: str) -> str | None:
    """An interpreter of this version by its name, on the path or behind pyenv's shims; None if there is none."""
    name = shutil.which(f"python{version}")
    if name is None:
        return None
    told = subprocess.run(
        [name, "-c", "import sys; print(sys.executable)"],
        capture_output=True, text=True, env={**os.environ, "PYENV_VERSION": version},
    )  # fmt: skip
    return told.stdout.strip() if told.returncode == 0 else None


def build(folder: Path) -> Path:
    """Build an sdist, and the wheel from it; check what is in them."""
    run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], ROOT)
    wheel = folder / f"priorkit-{__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = f"priorkit-{__version__}.dist-info"
    wanted = {f"{metadata}/licenses/LICENSE", "priorkit/py.typed", "priorkit/recipes/demo.yaml"}
    wanted.add("priorkit/recipes/demo/open_clip_model.safetensors")
    require(wanted <= names, f"the wheel lacks {wanted - names}")
    require(all(name.startswith(("priorkit/", metadata)) for name in names), "the wheel has names of other packages")
    with tarfile.open(folder / f"priorkit-{__version__}.tar.gz") as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    # a link to a folder is packed as the files in it
    kept = {name for name in listed.split("\0") if (ROOT / name).is_file() and not name.startswith(".git")}
    require(kept <= packed, f"the sdist lacks {sorted(kept - packed)[:5]}")
    return wheel


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(message)


@contextlib.contextmanager
def fresh(python: str, installer: str) -> Iterator[Environment]:
    """A new environment, and an empty folder to work in; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="priorkit-install-"))
    try:
        run([python, "-m", "venv", "venv"], folder)
        (folder / "work").mkdir()
        yield Environment(folder, installer)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def shared_cuda(made: Environment, shared: Path | None) -> Iterator[None]:
    """While packages are installed, share CUDA's libraries with other environments by hard links, as uv does.

    They are half of what is installed, and the same for every Python.
    """
    if shared is not None:
        link_cuda(shared, made.packages)
    yield
    if shared is not None and not shared.exists():
        link_cuda(made.packages, shared)


def link_cuda(source: Path, target: Path) -> None:
    for record in source.glob("nvidia_*.dist-info/RECORD"):
        for name, *_ in csv.reader(record.read_text(encoding="utf-8").splitlines()):
            if not name.endswith(".pyc"):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(source / name, target / name)


def bytes_below(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def make_list(folder: Path, port: int) -> None:
    """Images to serve, and a list of their URLs."""
    served = folder / "served"
    served.mkdir()
    lines = ["url,caption"]
    for index in range(ROWS):
        pixels = np.random.default_rng(index).integers(0, 255, (1, 1, 3), dtype=np.uint8).repeat(96, 0).repeat(96, 1)
        pixels[: index + 8, :40] = 255 - index
        Image.fromarray(pixels).save(served / f"{index}.png")
        lines.append(f"http://127.0.0.1:{port}/{index}.png,a {COLOURS[index % 8]} square number {index}")
    lines.append(f"http://127.0.0.1:{port}/gone.png,not there")
    (folder / "work" / "urls.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def chain(made: Environment, clip: Sequence[str]) -> None:
    """Every stage from a served list to samples, stage by stage and by a recipe."""
    port, work = free_port(), made.folder / "work"
    make_list(made.folder, port)
    private, small = ["--set", "download.allow_private_addresses=true"], ["--image-size", "64"]
    train = [
        "--set", "train.steps=20", "--set", "train.batch_size=16", "--set", "train.network.width=64",
        "--set", "train.network.depth=1", "--set", "train.network.heads=2", "--set", "train.network.max_text_len=0",
        "--set", "read.validation_fraction=0.1", "--set", "read.test_fraction=0.3",
    ]  # fmt: skip
    sets = [f"--set=embed.clip.{name}" for name in clip]
    evaluate = ["--set", "evaluate.sample.steps=4", "--set", "evaluate.draws=8"]
    with serve(made.folder / "served", port):
        made.priorkit("--version")
        made.priorkit("recipes", "list")
        made.priorkit("recipes", "copy", "custom", "my_recipe.yaml")
        made.priorkit("recipes", "validate", "my_recipe.yaml", *sets)
        downloaded = json.loads(made.priorkit("download", "urls.csv", *private, *small, "--json")[0])
    require(downloaded["counts"] == {"success": ROWS, "http_4xx": 1}, f"download: {downloaded['counts']}")
    made.priorkit("embed", *sets)
    engines_agree(made, sets)
    made.priorkit("embed", "--embeddings", "data/on_ray", "--workers", "1", *sets)
    same = [(work / "data" / folder / "text_emb/text_emb_0000.npy").read_bytes() for folder in ("embeddings", "on_ray")]
    require(same[0] == same[1], "embeddings of a Ray worker differ")
    made.priorkit("train", "custom", *sets, *train)
    made.priorkit("evaluate", *evaluate)
    made.priorkit("sample", "data/prior", "a red square", "--steps", "4")
    made.priorkit("inspect", "data/embeddings")
    made.priorkit("status")
    told = made.priorkit("report", code=1)[1]
    require('pip install "priorkit[report]"' in told, f"report without matplotlib: {told}")
    # what one command made is up to date for the recipe
    again = [
        "my_recipe.yaml",
        "--set=urls=urls.csv",
        *private,
        "--set=download.image_size=64",
        *sets,
        *train,
        *evaluate,
    ]
    stages = json.loads(made.priorkit("run", *again, "--json")[0])["stages"]
    require([stage["done_now"] for stage in stages] == [0, 0, 0, 0], f"run did again: {stages}")
    found = json.loads(made.priorkit("doctor", "--json")[0])
    require(found["problems"] == [], f"doctor: {found['problems']}")
    made.figures["versions"] = {name: v for need in found["chain"] for name, v in need["versions"].items()}


def engines_agree(made: Environment, sets: Sequence[str]) -> None:
    """The engine clip-retrieval names the command that installs it; then it gives what the native engine gave."""
    command = ["embed", "--embeddings", "data/by_clip_retrieval", "--set", "embed.engine=clip-retrieval", *sets]
    told = made.priorkit(*command, code=1)[1]
    advice = re.search(r"install it: pip install (--no-deps .+)", told)
    require(advice is not None, f"embed without clip-retrieval: {told}")
    assert advice is not None
    made.install(*advice.group(1).split())
    made.priorkit(*command)
    ours, theirs = (made.folder / "work" / "data" / name for name in ("embeddings", "by_clip_retrieval"))
    for kind in ("img_emb", "text_emb"):
        one, other = (np.load(folder / kind / f"{kind}_0000.npy").astype(np.float64) for folder in (ours, theirs))
        cosines = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
        require(len(cosines) == ROWS and cosines.min() >= 0.9999, f"engines differ in {kind}: cosine {cosines.min()}")
    columns = ["key", "image_path", "caption"]
    same = [pq.read_table(folder / "metadata/metadata_0000.parquet", columns=columns) for folder in (ours, theirs)]
    require(same[0].equals(same[1]), "engines differ in keys or captions")


def start_up(made: Environment) -> dict[str, float]:
    """Median seconds of the help of each command."""
    seconds = {}
    for name in HELPS:
        made.figures["seconds"] = {}
        for _ in range(3):
            made.priorkit(name, "--help")
        seconds[name] = statistics.median(made.figures["seconds"][name])
    return seconds


def full(
    python: str,
    version: str,
    installer: str,
    wheel: Path,
    constraints: Path | None = None,
    keep: Path | None = None,
    shared: Path | None = None,
    times_help: bool = False,
) -> Any:
    """Install and run the chain; what was measured."""
    with fresh(python, installer) as made:
        pinned = ["--constraint", str(constraints)] if constraints else []
        with shared_cuda(made, shared):
            install = made.install(str(wheel), *pinned)
        size = bytes_below(made.folder / "venv")
        clip = ["model=priorkit:demo", "pretrained=null"]
        if constraints:
            code = "import open_clip, torch; torch.save(open_clip.create_model('ViT-S-32-alt').state_dict(), 'clip.pt')"
            run([made.program("python"), "-c", code], made.folder / "work")
            clip = ["model=ViT-S-32-alt", "pretrained=clip.pt"]
        chain(made, clip)
        seconds = {name: values[-1] for name, values in made.figures["seconds"].items()}
        peak, versions = made.figures["peak_memory"], made.figures["versions"]
        starts = start_up(made) if times_help else {}
        if keep is not None:
            shutil.copytree(made.folder / "work" / "data", keep)
        return {
            "bench": "install", "python": version, "installer": installer, "install_seconds": install,
            "megabytes": size / 1e6, "peak_memory_megabytes": peak / 1e6, "last_seconds": seconds,
            "help_seconds": starts, "versions": versions,
        }  # fmt: skip


def light_requirements() -> list[str]:
    """What the page says to install for sampling from stored embeddings."""
    line = re.search(r"^pip install (\"torch.*)$", PAGE_OF_LIGHT.read_text(encoding="utf-8"), re.MULTILINE)
    assert line is not None, PAGE_OF_LIGHT
    return re.findall(r'"([^"]+)"', line.group(1))


def light(python: str, version: str, installer: str, wheel: Path, data: Path, shared: Path | None = None) -> Any:
    """The light install: it samples from stored embeddings, and each other stage says what it lacks."""
    with fresh(python, installer) as made:
        with shared_cuda(made, shared):
            install = made.install("--no-deps", str(wheel)) + made.install(*light_requirements())
        size = bytes_below(made.folder / "venv")
        listed = subprocess.run(
            [made.program("python"), "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
        )
        names = {package["name"].lower().replace("_", "-") for package in json.loads(listed.stdout)}
        absent = {"ray", "img2dataset", "open-clip-torch", "torchvision", "pillow", "aiohttp"}
        require(not names & absent, f"the light install has {names & absent}")
        shutil.copytree(data, made.folder / "work" / "data")
        stored = "data/embeddings/text_emb/text_emb_0000.npy"
        for source in (stored, "data/embeddings"):
            made.priorkit("sample", "data/prior", "--embeddings", source, "--steps", "4")
            drawn = np.load(made.folder / "work" / "samples.npy")
            require(len(drawn) == ROWS and bool(np.isfinite(drawn).all()), f"samples of {source}: {drawn.shape}")
        (made.folder / "work" / "urls.csv").write_text("url,caption\nhttp://127.0.0.1/a.png,a\n")
        lacking = {
            ("download", "urls.csv"): "priorkit download needs ",
            ("embed", "--embeddings", "data/other"): "priorkit embed needs ",
            ("sample", "data/prior", "a caption"): "priorkit sample needs ",
            ("evaluate", "--evaluation", "data/other", "--set", "compute.backend=ray"): "needs Ray",
        }
        for arguments, message in lacking.items():
            told = made.priorkit(*arguments, code=1)[1]
            require(message in told and "pip install" in told, f"{' '.join(arguments)}: {told}")
            print(told.strip())
        found = json.loads(made.priorkit("doctor", "--json", code=1)[0])
        ready = [need["name"] for need in found["chain"] if not need["fix"]]
        require("sample, of stored embeddings" in ready and "download" not in ready, f"doctor: {ready}")
        return {
            "bench": "light install", "python": version, "installer": installer, "install_seconds": install,
            "megabytes": size / 1e6,
        }  # fmt: skip


def lowest(wheel: Path) -> str:
    """Constraints that hold every direct dependency at its lower bound."""
    with zipfile.ZipFile(wheel) as packed:
        text = packed.read(f"priorkit-{__version__}.dist-info/METADATA").decode()
    bounds = re.findall(r"^Requires-Dist: ([\w.-]+)(?:\[\w+\])?>=([\d.]+)$", text, re.MULTILINE)
    return "".join(f"{name}=={version}\n" for name, version in bounds if name not in EXCEPTED)


def page(results: list[dict[str, Any]]) -> str:
    """The text of the page."""
    installs = [result for result in results if result["bench"] == "install"]
    columns = ["Python", "install, s", "by", "size, MB", "peak memory of the chain, MB"]
    rows = [
        [
            r["python"],
            f"{r['install_seconds']:.0f}",
            r["installer"],
            f"{r['megabytes']:,.0f}",
            f"{r['peak_memory_megabytes']:,.0f}",
        ]
        for r in installs
    ]
    rows += [
        [f"{r['python']}, light", f"{r['install_seconds']:.0f}", r["installer"], f"{r['megabytes']:,.0f}", ""]
        for r in results
        if r["bench"] == "light install"
    ]
    starts = [[name, *(f"{r['help_seconds'][name]:.2f}" for r in installs)] for name in HELPS]
    idle = [[name, *(f"{r['last_seconds'][name]:.1f}" for r in installs)] for name in installs[0]["last_seconds"]]
    return f"""The wheel was installed into a fresh environment, and the chain was run from it in an empty
folder, on {ROWS} images: download from a server on this machine, embedding in this process and on a Ray worker, 20
steps of training, evaluation, sampling, inspection, and a recipe over all of it. Torch came from this machine's disk,
other packages partly from the network: elsewhere a first install takes as long as a download of about 3 GB. Other work
took part of both cores, so seconds are an upper bound.

{markdown(columns, rows)}

Seconds until the help of a command is there, the median of 3; no command imports torch or Ray for it:

{markdown(["command", *(f"Python {r['python']}" for r in installs)], starts)}

Seconds of the last run of each command on those {ROWS} rows, nearly all of which are imports:

{markdown(["command", *(f"Python {r['python']}" for r in installs)], idle)}
"""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def main() -> None:
    made = harness.argparse.ArgumentParser(description=__doc__, formatter_class=harness.argparse.RawTextHelpFormatter)
    made.add_argument("--pythons", nargs="+", default=list(PYTHONS), help="versions to run on")
    made.add_argument("--lowest", action="store_true", help="only the oldest versions that the bounds allow")
    made.add_argument("--installer", choices=("pip", "uv"), default="pip", help="what installs; uv must be on the path")
    made.add_argument("--add", type=Path, help="file of earlier results, a line of JSON each, for the page")
    made.add_argument("--no-page", action="store_true", help="print only: quicker, and times mean less")
    chosen = made.parse_args()
    found = {version: python for version in chosen.pythons if (python := find_python(version)) is not None}
    for version in chosen.pythons:
        print(f"Python {version}: {found.get(version, 'missing: no python' + version + ' that runs is on the path')}")
    require(bool(found), "none of these Pythons is here")
    results = [json.loads(line) for line in chosen.add.read_text().splitlines()] if chosen.add else []
    with tempfile.TemporaryDirectory(prefix="priorkit-build-") as folder:
        wheel, data = build(Path(folder)), Path(folder) / "data"
        shared = Path(folder) / "cuda" if chosen.no_page else None  # the page has times of whole installs
        if chosen.lowest:
            version, python = next(iter(found.items()))
            (Path(folder) / "constraints.txt").write_text(lowest(wheel))
            harness.report(results, **full(python, version, chosen.installer, wheel, Path(folder) / "constraints.txt"))
            return
        for version, python in found.items():
            options: dict[str, Any] = {"shared": shared, "times_help": not chosen.no_page}
            keep = None if data.exists() else data
            harness.report(results, **full(python, version, chosen.installer, wheel, keep=keep, **options))
        version, python = next(iter(found.items()))
        harness.report(results, **light(python, version, chosen.installer, wheel, data, shared))
    if not chosen.no_page:
        harness.write_page("install", "Installing, and starting", page(results), results, ["pip"])


if __name__ == "__main__":
    main()
