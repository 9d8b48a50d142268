"""A clean list of photographs from a web server on this machine: ours against img2dataset, in turns.

Run in the ordinary environment, as `make bench` does; needs nginx. About 6 minutes on 2 cores, and 1 GB of disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from priorkit.pipeline.compute.device import available_cores
from priorkit.pipeline.download.settings import DownloadSettings

SHARD_ROWS, SIDE, QUALITY = 250, 256, 85
START = 5
"""One part of the list in so many is downloaded too; the difference to the whole list leaves start-up out."""
TEXTURES, TEXTURE_SIDE = 4, 2048

OURS = """
import json, sys, time
from priorkit.pipeline.config import DownloadSettings
from priorkit.pipeline.download.stage import download
urls, folder, settings = sys.argv[1:]
start = time.perf_counter()
download(urls, folder, DownloadSettings.model_validate_json(settings))
print(json.dumps(time.perf_counter() - start))
"""
THEIRS = """
import json, sys, time
from img2dataset import download
if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    start = time.perf_counter()
    download(**options)
    print(json.dumps(time.perf_counter() - start))
"""
BARE = """
import json, sys, time
from pathlib import Path
from priorkit.pipeline.config import DownloadSettings
from priorkit.pipeline.download.decoding.resize import ImageResizer
import cv2
cv2.setNumThreads(1)
folder, first, step, settings = sys.argv[1:]
bodies = [path.read_bytes() for path in sorted(Path(folder).iterdir())[int(first)::int(step)]]
resize = ImageResizer(DownloadSettings.model_validate_json(settings))
resize(bodies[0])
print(flush=True)
sys.stdin.readline()
start = time.perf_counter()
for body in bodies:
    resize(body)
print(json.dumps(time.perf_counter() - start))
"""
"""Decodes, resizes and encodes what is in memory: one of as many processes as there are cores."""

NGINX = """
daemon off; pid {root}/nginx.pid; error_log {root}/error.log; worker_processes 1; events {{}}
http {{
  access_log off; sendfile on; keepalive_requests 1000000; types {{ image/jpeg jpg; }}
  client_body_temp_path {root}/a; proxy_temp_path {root}/b; fastcgi_temp_path {root}/c; uwsgi_temp_path {root}/d;
  scgi_temp_path {root}/e;
  server {{ listen 127.0.0.1:{port} backlog=1024; root {served}; }}
}}
"""


def write_images(folder: Path, count: int) -> int:
    """JPEGs of 500 to 1,600 pixels a side, with the spectrum of photographs; returns their bytes."""
    folder.mkdir()
    random = np.random.default_rng(0)
    square = np.fft.fftfreq(TEXTURE_SIDE)[:, None] ** 2 + np.fft.rfftfreq(TEXTURE_SIDE)[None] ** 2
    square[0, 0] = 1
    textures = []
    for _ in range(TEXTURES):
        white = random.standard_normal((TEXTURE_SIDE, TEXTURE_SIDE))
        values = np.fft.irfft2(np.fft.rfft2(white) / square**0.665, (TEXTURE_SIDE, TEXTURE_SIDE))
        textures.append(((values - values.mean()) / values.std()).astype(np.float32))
    total = 0
    for number in range(count):
        width, height = random.integers(500, 1601, 2)
        top, left = (random.integers(0, TEXTURE_SIDE - side + 1) for side in (height, width))
        planes = [textures[(number + turn) % TEXTURES][top : top + height, left : left + width] for turn in range(3)]
        light = planes[0] * random.uniform(30, 50) + 128
        pixels = np.stack([light + 15 * planes[1], light, light + 15 * planes[2]], -1).clip(0, 255).astype(np.uint8)
        body = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
        (folder / f"{number:05d}.jpg").write_bytes(body)
        total += len(body)
    return total


@contextlib.contextmanager
def nginx(root: Path, served: Path) -> Iterator[tuple[str, int]]:
    """A web server: its address, and the process id of the one worker that answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (root / "nginx.conf").write_text(NGINX.format(root=root, port=port, served=served))
    program = shutil.which("nginx")
    assert program, "this bench needs nginx"
    command = [program, "-c", str(root / "nginx.conf")]
    process = subprocess.Popen([*command, "-g", "user root;"] if os.getuid() == 0 else command)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield f"http://127.0.0.1:{port}", int(children[0])
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(program: str, *arguments: str) -> tuple[float, float]:
    """Seconds that a program in a process of its own says it took, and processor time of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(done.stdout.splitlines()[-1]), cpu


def settings(mode: str) -> str:
    """Ours, as JSON."""
    made = DownloadSettings.model_validate(
        {"rows_per_shard": SHARD_ROWS, "image_size": SIDE, "decode_mode": mode, "allow_private_addresses": True}
    )
    return made.model_dump_json()


def upstream_options(urls: Path, folder: Path) -> dict[str, Any]:
    """img2dataset's settings: a process for each core, 64 threads in each, shards that keep all busy; else defaults."""
    return {
        "url_list": str(urls), "input_format": "parquet", "url_col": "url", "caption_col": "caption",
        "output_folder": str(folder), "output_format": "webdataset", "image_size": SIDE,
        "resize_mode": "keep_ratio", "resize_only_if_bigger": True, "number_sample_per_shard": SHARD_ROWS,
        "processes_count": available_cores(), "thread_count": 64, "enable_wandb": False,
    }  # fmt: skip


def bare_seconds(served: Path, mode: str) -> float:
    """Seconds in which all cores decode, resize and encode all images, without fetching or writing any."""
    cores = available_cores()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BARE, str(served), str(core), str(cores), settings(mode)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for core in range(cores)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in processes)


def images_of(folder: Path) -> dict[str, bytes]:
    """Stored images by key."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    file = tar.extractfile(member)
                    assert file is not None
                    found[member.name] = file.read()
    return found


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Mean structural similarity of two grey images `[H, W]` of 0 to 255, over windows of 7x7 (Wang et al. 2004)."""

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (7, 7))[3:-3, 3:-3]

    a, b = first.astype(np.float64), second.astype(np.float64)
    mean_a, mean_b = mean(a), mean(b)
    variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((similarity / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))).mean())


def similarities(exact: dict[str, bytes], fast: dict[str, bytes]) -> list[float]:
    """SSIM of every image of two runs."""
    assert exact.keys() == fast.keys()

    def grey(data: bytes) -> np.ndarray:
        return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE))

    return [ssim(grey(exact[key]), grey(fast[key])) for key in exact]


def race(results: list[dict[str, Any]], work: Path, images: int, rounds: int) -> None:
    """All ways in turns, over the whole list and over its beginning."""
    served = work / "served"
    size = write_images(served, images)
    with nginx(work, served) as (url, server):
        lists = {images: work / "all.parquet", images // START: work / "beginning.parquet"}
        for rows, path in lists.items():
            urls = [f"{url}/{number:05d}.jpg" for number in range(rows)]
            pq.write_table(pa.table({"url": urls, "caption": [""] * rows}), path)
        out = {way: work / way for way in ("exact", "fast", "img2dataset")}
        seconds: dict[str, dict[int, list[float]]] = {way: {rows: [] for rows in lists} for way in out}
        served_cpu: dict[str, list[float]] = {way: [] for way in out}
        own_cpu: dict[str, list[float]] = {way: [] for way in out}
        bare: dict[str, list[float]] = {"exact": [], "fast": []}
        for _ in range(rounds):
            for way, folder in out.items():
                for rows, path in reversed(lists.items()):
                    shutil.rmtree(folder, ignore_errors=True)
                    before = cpu_seconds(server)
                    if way == "img2dataset":
                        taken, cpu = run(THEIRS, json.dumps(upstream_options(path, folder)))
                    else:
                        taken, cpu = run(OURS, str(path), str(folder), settings(way))
                    seconds[way][rows].append(taken)
                served_cpu[way].append((cpu_seconds(server) - before) / images)
                own_cpu[way].append(cpu / images)
            for mode in bare:
                bare[mode].append(images / bare_seconds(served, mode))
    stored = {way: images_of(folder) for way, folder in out.items()}
    assert len(stored["exact"]) == images
    assert stored["exact"] == stored["img2dataset"]
    alike = similarities(stored["exact"], stored["fast"])
    rest = images - images // START
    steady = {
        way: [rest / (whole - part) for whole, part in zip(*both.values(), strict=True)]
        for way, both in seconds.items()
    }
    whole = {way: [images / one for one in both[images]] for way, both in seconds.items()}
    for way in out:
        ours = way != "img2dataset"
        harness.report(
            results, bench="clean list", way=way, images=images, mean_bytes=size / images, rate=whole[way],
            steady_rate=steady[way], times_faster=harness.paired_ratio(whole[way], whole["img2dataset"]),
            steady_times_faster=harness.paired_ratio(steady[way], steady["img2dataset"]),
            bare_rate=bare[way] if ours else None,
            share_of_bare=harness.paired_ratio(steady[way], bare[way]) if ours else None,
            identical_bytes=way == "exact", mean_ssim=float(np.mean(alike)) if way == "fast" else None,
            lowest_ssim=min(alike) if way == "fast" else None, nginx_ms=[1000 * each for each in served_cpu[way]],
            cpu_ms=[1000 * each for each in own_cpu[way]],
        )  # fmt: skip


def page(results: list[dict[str, Any]]) -> str:
    """The text and table of the page."""
    told = [
        {key: "-" if value is None else value for key, value in result.items()}
        | {"share": "-" if result["share_of_bare"] is None else f"{result['share_of_bare']:.2f}"}
        | {"bare": "-" if result["bare_rate"] is None else f"{harness.median(result['bare_rate']):.0f}"}
        | {"ssim": "-" if result["mean_ssim"] is None else f"{result['mean_ssim']:.4f}"}
        for result in results
    ]
    rates = harness.table(
        told,
        {
            "what": "{way}", "images/s": "{rate:.0f}", "times img2dataset": "{times_faster:.2f}",
            "images/s after start": "{steady_rate:.0f}", "times img2dataset after start": "{steady_times_faster:.2f}",
            "decoding alone, images/s": "{bare}", "share of it": "{share}", "mean SSIM": "{ssim}",
            "CPU ms an image": "{cpu_ms:.1f}", "nginx's": "{nginx_ms:.2f}",
        },
    )  # fmt: skip
    first = results[0]
    size = f"{first['mean_bytes'] / 1000:.0f}"
    return f"""
{first["images"]:,} JPEGs of 500 to 1,600 pixels a side, with the spectrum of photographs, of {size} kB each, from
nginx on the same machine, whose work is part of the time; resized to {SIDE} pixels. img2dataset with a process for each
core, 64 threads in each, shards of {SHARD_ROWS} and else its defaults; ours with its defaults and the same shards. All
take turns, each in a new process. Rates count from the call of `download` on, so with the start of processes; those
after start are of the list without its first fifth, by the difference in time. Decoding alone is what all cores do with
bodies in memory, in the same turns; the share is of the rate after start. What is left out there (the request, the
hash of the body, handing it to a decoder, the tar) takes the same time in both modes, so that it is a larger part of
`fast`. CPU is of all processes but nginx, their start included. The image bytes of `exact` are img2dataset's, all of
them. SSIM is that of `fast` to `exact`, of luminance; the lowest is {results[1]["lowest_ssim"]:.4f}.

{rates}
"""


def main() -> None:
    """Run all of it."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--images", type=int, default=3000, help="images in the list")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        race(results, Path(folder), arguments.images, arguments.rounds)
    if not arguments.no_page:
        packages = ("img2dataset", "opencv-python-headless", "albumentations", "aiohttp", "numpy")
        harness.write_page("download", "Downloading a clean list", page(results), results, packages)


if __name__ == "__main__":
    main()
