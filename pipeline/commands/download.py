"""The `priorkit download` command. Heavy dependencies are imported only when it runs."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from .options import (
    DryRunOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    SetOption,
    WorkersOption,
    command_settings,
    expand_path,
    show_plan,
    show_result,
)


def download(
    urls: Annotated[
        str,
        typer.Argument(
            help="List of URLs: parquet, csv, tsv, json, jsonl or txt; or a folder or pattern of them.",
            callback=expand_path,
        ),
    ],
    images: Annotated[
        str, typer.Option(help="Folder to write webdataset shards to.", callback=expand_path)
    ] = "data/images",
    url_column: Annotated[Optional[str], typer.Option(show_default="url", help="Column of the URL.")] = None,
    caption_column: Annotated[
        Optional[str], typer.Option(show_default="caption", help="Column of the caption; null for none.")
    ] = None,
    column_names: Annotated[
        Optional[str], typer.Option(metavar="NAMES", help="Columns of a csv or tsv without header, as in caption,url.")
    ] = None,
    guess_columns: Annotated[
        bool, typer.Option("--guess-columns", help="Use common names such as image_url or TEXT for missing columns.")
    ] = False,
    image_size: Annotated[Optional[int], typer.Option(show_default="256", help="Side in pixels to resize to.")] = None,
    verify_hash: Annotated[
        Optional[str], typer.Option(metavar="COLUMN", help="Column of the MD5, SHA-1, SHA-256 or SHA-512 of bodies.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Fetch those rows again whose failure may have passed.")
    ] = False,
    workers: WorkersOption = None,
    settings: SetOption = None,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Download images from a list of URLs into webdataset shards, skipping shards that are complete.

    Example: priorkit download urls.parquet --caption-column text --limit 1000
    """
    from ..display.terminal import progress_bar, reported_errors
    from ..download.stage import download as run_download
    from ..download.stage import plan_download
    from ..errors import SettingsError

    with reported_errors():
        options = {
            "download.url_column": url_column,
            "download.caption_column": caption_column,
            "download.column_names": column_names,
            "download.guess_columns": guess_columns or None,
            "download.image_size": image_size,
            "download.hash_column": verify_hash,
        }
        chosen = command_settings("download", settings, options, workers)
        if retry_failed and overwrite:
            raise SettingsError("--retry-failed keeps what the folder holds, --overwrite discards it: use one of them")
        if dry_run:
            plan = plan_download(
                urls, images, chosen.download, limit=limit, overwrite=overwrite, retry_failed=retry_failed
            )
            show_plan(plan, as_json)
            return
        with progress_bar("download", "rows", quiet=as_json) as progress:
            result = run_download(
                urls, images, chosen.download, compute=chosen.compute,
                limit=limit, overwrite=overwrite, retry_failed=retry_failed, progress=progress,
            )  # fmt: skip
        show_result(result, as_json)
        if not as_json:
            _show_statistics(result.statistics)


def _show_statistics(statistics: dict[str, Any]) -> None:
    """Print download statistics: retries, failures, hosts with the most failures, and notes about the URL list."""
    from ..display.terminal import print_table

    if tried := statistics.get("retried"):
        print_table("tried again", ("", ""), [("rows", f"{tried['rows']:,}"), ("  success", f"{tried['success']:,}")])
    if statistics["errors"]:
        print_table("failures", ("error", "rows"), [(name, f"{n:,}") for name, n in statistics["errors"].items()])
    if statistics["hosts"]:
        rows = [
            (host, f"{sum(failures.values()):,}", ", ".join(f"{n:,} {label}" for label, n in failures.items()))
            for host, failures in statistics["hosts"].items()
        ]
        print_table("hosts with most failures", ("host", "rows", "errors"), rows)
    about = "" if statistics["duplicates_exact"] else ", about"
    counts = [
        (f"rows whose URL came before{about}", f"{statistics['duplicate_urls']:,}"),
        ("rows with text that is not UTF-8", f"{statistics['not_utf8']:,}"),
    ]
    notes = statistics["list"]
    if notes["rows"] is not None:
        counts.insert(0, ("rows by an independent count", f"{notes['rows']:,}"))
    counts += [
        (f"column used as {setting.removesuffix('_column')}", column)
        for setting, column in notes["guessed_columns"].items()
    ]
    counts += [
        (f"column {column}, whose name is ours, is kept as", name) for column, name in notes["renamed_columns"].items()
    ]
    if notes["quoted_fields"]:
        counts.append(
            ("fields in quotes, kept as text; download.quoting=rfc4180 unquotes", f"{notes['quoted_fields']:,}")
        )
    counts += [
        (f"rows whose key {key} is left out, since it begins after 10,000 rows", f"{rows:,}")
        for key, rows in notes["late_keys"].items()
    ]
    print_table("list", ("", ""), counts)
