"""Download from a real web server of the kind that serves most of the web."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorkit.pipeline.download.settings import DownloadSettings
from priorkit.pipeline.download.stage import download

from .conftest import wait_for

pytestmark = pytest.mark.nginx

CONFIG = """
daemon off; pid {root}/nginx.pid; error_log {root}/error.log; events {{}}
http {{
  access_log off; client_body_temp_path {root}/a; proxy_temp_path {root}/b; fastcgi_temp_path {root}/c;
  uwsgi_temp_path {root}/d; scgi_temp_path {root}/e; types {{ image/jpeg jpg; image/png png; image/webp webp; }}
  gzip on; gzip_types image/png; gzip_min_length 1;
  server {{
    listen 127.0.0.1:{port}; root {served};
    location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
    location /opted-out/ {{ add_header X-Robots-Tag "noai, noimageai"; alias {served}/; }}
  }}
}}
"""


@pytest.fixture
def nginx(tmp_path: Path, image_server: object) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "nginx.conf"
    config.write_text(CONFIG.format(root=tmp_path, port=port, served=image_server.folder))  # type: ignore[attr-defined]
    tmp_path.chmod(0o755)
    program = shutil.which("nginx")
    assert program, "nginx is installed by .ci/run"
    process = subprocess.Popen([program, "-c", str(config), "-g", "user root;"])

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(answers)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(600)


def test_same_images_as_from_any_other_server(
    nginx: str, url_list: object, images_folder: Path, download_settings: DownloadSettings, tmp_path: Path
) -> None:
    """Compressed, redirected and plain answers give the same image bytes; an opt-out is respected and counted."""
    names = [url.rpartition("/")[2] for url in url_list.urls]  # type: ignore[attr-defined]
    places = ["", "moved/", "opted-out/"]
    urls = [f"{nginx}/{places[index % 3]}{name}" for index, name in enumerate(names)]
    list_path = tmp_path / "nginx.parquet"
    pq.write_table(pa.table({"url": urls, "caption": url_list.captions}), list_path)  # type: ignore[attr-defined]
    download(str(list_path), str(tmp_path / "from_nginx"), download_settings)

    def hashes(folder: Path) -> list[tuple[str | None, str | None]]:
        rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
        return [(row["sha256"], row["error_message"]) for row in rows]

    expected, found = hashes(images_folder), hashes(tmp_path / "from_nginx")
    for index, (before, after) in enumerate(zip(expected, found, strict=True)):
        if before[0] is not None and index % 3 == 2:
            assert after == (None, "opted_out: X-Robots-Tag")
        else:
            assert after[0] == before[0]
