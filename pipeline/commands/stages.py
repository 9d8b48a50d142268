"""The commands of the pipeline: download, embed, inspect. Heavy imports happen when a command runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from ..compute.stage import StagePlan, StageResult
    from ..config import PipelineSettings
    from ..inspect.findings import Inspection

LimitOption = Annotated[Optional[int], typer.Option("--limit", min=1, help="Work on the first N rows only.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan, disk space and time; do nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Discard what the folder holds and start anew.")]
SetOption = Annotated[
    Optional[list[str]],
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of a recipe that this command reads; may be repeated."),
]
WorkersOption = Annotated[
    Optional[int], typer.Option("--workers", show_default="this process", help="Ray workers to spread over.")
]


def download(
    urls: Annotated[
        str, typer.Argument(help="List of URLs: parquet, csv, tsv, json, jsonl or txt, or a folder of them.")
    ],
    images: Annotated[str, typer.Option(help="Folder to write webdataset shards to.")] = "data/images",
    url_column: Annotated[Optional[str], typer.Option(show_default="url", help="Column of the URL.")] = None,
    caption_column: Annotated[
        Optional[str], typer.Option(show_default="caption", help="Column of the caption; null for none.")
    ] = None,
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
    """Fetch a list of image URLs into webdataset shards, or what is missing of them.

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
            "download.image_size": image_size,
            "download.hash_column": verify_hash,
        }
        chosen = _settings("download", settings, options, workers)
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
    """Print what a download counts besides outcomes; `--json` has it too."""
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


def embed(
    images: Annotated[str, typer.Argument(help="Folder of image shards, of files, or of tables.")] = "data/images",
    embeddings: Annotated[str, typer.Option(help="Folder to write embedding shards to.")] = "data/embeddings",
    model: Annotated[
        Optional[str], typer.Option(show_default="ViT-B-32", help="open_clip model, hf-hub:ID or local-dir:PATH.")
    ] = None,
    pretrained: Annotated[
        Optional[str], typer.Option(show_default="laion2b_s34b_b79k", help="open_clip tag or path of the weights.")
    ] = None,
    batch_size: Annotated[Optional[int], typer.Option(show_default="64", help="Pairs in one forward pass.")] = None,
    device: Annotated[Optional[str], typer.Option(show_default="auto", help="auto, cpu or cuda.")] = None,
    workers: WorkersOption = None,
    settings: SetOption = None,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Embed downloaded images and captions with a CLIP, or what is missing of them.

    Example: priorkit embed --model ViT-L-14 --pretrained laion2b_s32b_b82k --device cuda
    """
    from ..display.terminal import progress_bar, reported_errors

    with reported_errors():
        from ..embed.stage import embed as run_embed
        from ..embed.stage import plan_embed

        options = {
            "embed.clip.model": model,
            "embed.clip.pretrained": pretrained,
            "embed.batch_size": batch_size,
            "embed.device": device,
        }
        chosen = _settings("embed", settings, options, workers)
        if dry_run:
            plan = plan_embed(
                images, embeddings, chosen.embed, compute=chosen.compute, limit=limit, overwrite=overwrite
            )
            show_plan(plan, as_json)
            return
        with progress_bar("embed", "shards", quiet=as_json) as progress:
            result = run_embed(
                images, embeddings, chosen.embed,
                compute=chosen.compute, limit=limit, overwrite=overwrite, progress=progress,
            )  # fmt: skip
        show_result(result, as_json)


def _settings(
    section: str, overrides: list[str] | None, options: dict[str, Any], workers: int | None
) -> PipelineSettings:
    """Settings from `--set`, then from options of their own, which are what the user typed last."""
    from ..config import PipelineSettings
    from ..settings import parse_settings, with_overrides

    # options are plain words: quoted as JSON, so that YAML does not read a column `no` as false
    given = [
        f"{name}={'null' if value == 'null' else json.dumps(value, ensure_ascii=False)}"
        for name, value in options.items()
        if value is not None
    ]
    sections = (section, "compute")
    values = with_overrides({}, [*(overrides or []), *worker_overrides(workers), *given], sections)
    return parse_settings(PipelineSettings, values, "options", sections)


def worker_overrides(workers: int | None) -> list[str]:
    """What the option `--workers` says of the settings."""
    return [] if workers is None else ["compute.backend=ray", f"compute.workers={workers}"]


def show_plan(plan: StagePlan, as_json: bool) -> None:
    """Print what one stage would do."""
    from ..display.terminal import print_json, print_plans

    if as_json:
        print_json(plan.to_json())
    else:
        print_plans([plan])


def show_result(result: StageResult, as_json: bool) -> None:
    """Print what one stage did."""
    from ..display.terminal import print_json, print_result

    if as_json:
        print_json(result.to_json())
    else:
        print_result(result)


def inspect(
    path: Annotated[str, typer.Argument(help="Folder of any stage, ours, img2dataset's or clip-retrieval's.")],
    html: Annotated[Optional[str], typer.Option(metavar="FILE", help="Write a page with plots to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is in a folder and whether it is sound; exit code 1 on damage.

    Example: priorkit inspect data/embeddings --html inspection.html
    """
    from dataclasses import asdict

    from ..display.page import page_target, write_page
    from ..display.terminal import EXIT_FAILURE, print_error, print_json, progress_bar, reported_errors
    from ..inspect.folder import inspect_folder
    from ..inspect.page import inspection_page

    with reported_errors():
        target = page_target("--html", html, [path]) if html is not None else None
        with progress_bar("inspect", "shards", quiet=as_json) as progress:
            found = inspect_folder(path, progress)
        if as_json:
            print_json(asdict(found))
        else:
            _show_inspection(found)
        if target is not None:
            write_page(target, inspection_page(found))
        if found.problem_count:
            print_error(f"{found.folder} is damaged: {found.problem_count:,} problems")
            raise typer.Exit(EXIT_FAILURE)


def _show_inspection(found: Inspection) -> None:
    """Print an inspection as tables; `--json` has the findings that are not shown."""
    from ..display.terminal import print_table
    from ..inspect import page as rows

    print_table(found.folder, ("", ""), [*rows.summary_rows(found), *rows.setting_rows(found)])
    if found.errors:
        print_table("failures", ("message", "rows"), rows.error_rows(found))
    if found.looked_at:
        print_table("looked at", ("", ""), rows.looked_at_rows(found))
    if found.distributions:
        print_table("distributions", rows.DISTRIBUTION_HEADER, rows.distribution_rows(found))
    health = [("health", rows.health(found))]
    health += [("problem", problem) for problem in rows.listed(found.problems, found.problem_count, 20)]
    health += [("note", note) for note in rows.listed(found.notes, found.note_count, 20)]
    print_table("", ("", ""), health)
