"""The `priorkit doctor` command. Heavy dependencies are imported only when it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from .options import JsonOption, SetOption

if TYPE_CHECKING:
    from ..doctor.diagnosis import Diagnosis


def doctor(settings: SetOption = None, as_json: JsonOption = False) -> None:
    """Show which stages this machine can run, and what is missing. Exit with code 1 if a stage cannot run.

    Example: priorkit doctor --set compute.address=auto
    """
    from ..display.terminal import EXIT_FAILURE, print_error, print_json, reported_errors

    with reported_errors():
        from dataclasses import asdict

        from ..config import PipelineSettings
        from ..doctor.diagnosis import diagnose
        from ..settings import parse_settings, with_overrides

        values = with_overrides({}, settings or [], ("folders", "compute"))
        compute = values.get("compute")
        if isinstance(compute, dict) and compute.get("address") is not None:
            values["compute"] = {"backend": "ray", **compute}
        chosen = parse_settings(PipelineSettings, values, "options")
        diagnosis = diagnose(chosen.folders.images, chosen.compute)
        if as_json:
            print_json({**asdict(diagnosis), "problems": diagnosis.problems})
        else:
            _show(diagnosis)
        if diagnosis.problems:
            for problem in diagnosis.problems:
                print_error(problem)
            raise typer.Exit(EXIT_FAILURE)


def _show(diagnosis: Diagnosis) -> None:
    """Print the tables of a diagnosis, then the commands that fix problems, and then the notes."""
    from ..display.terminal import in_bytes, print_line, print_table
    from ..doctor.diagnosis import describe_fault

    free, ray = diagnosis.disk["free_bytes"], diagnosis.ray
    needs = [*diagnosis.chain, *diagnosis.extras, *diagnosis.engines]
    machine = [
        *diagnosis.versions.items(),
        ("cores", f"{diagnosis.cores}"),
        ("memory", "unknown" if diagnosis.memory_bytes is None else in_bytes(diagnosis.memory_bytes)),
        ("devices", ", ".join(diagnosis.devices) or "unknown: torch is not installed"),
        ("disk", f"{'unknown' if free is None else in_bytes(free)} free at {diagnosis.disk['folder']}"),
    ]
    if ray["version"] is not None:
        address = f"RAY_ADDRESS {ray['RAY_ADDRESS'] or 'not set'}"
        machine.append(("Ray", f"{ray['version']}, {address}, {ray['authentication']}"))
    if "resources" in ray:
        resources = "{nodes} nodes, {cpus:g} CPUs, {gpus:g} GPUs".format(**ray["resources"])
        machine.append(("Ray cluster", f"{resources} at {ray['address']}"))
    versions = {name: version for need in needs for name, version in need.versions.items()}
    machine += [(name, version) for name, version in sorted(versions.items())]
    print_table("this machine", ("", ""), machine)
    rows = [(need.name, describe_fault(need) or "ready") for need in diagnosis.chain]
    rows += [(f"extra {need.name}", describe_fault(need) or "ready") for need in diagnosis.extras]
    rows += [(need.name, describe_fault(need) or "ready") for need in diagnosis.engines]
    print_table("what can run", ("stage", "state"), rows)
    for need in needs:
        if need.fix:  # printed outside the table, so that the whole command can be copied
            print_line(f"to fix {need.name}: {need.fix}")
    for note in diagnosis.notes:
        print_line(f"note: {note}")
