"""The command that looks at the machine. Heavy imports happen when it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from .stages import JsonOption, SetOption

if TYPE_CHECKING:
    from ..doctor.diagnosis import Diagnosis


def doctor(settings: SetOption = None, as_json: JsonOption = False) -> None:
    """Show what this machine has for each stage, and what is missing; exit code 1 if the chain cannot run.

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
        found = diagnose(chosen.folders.images, chosen.compute)
        if as_json:
            print_json({**asdict(found), "problems": found.problems})
        else:
            _show(found)
        if found.problems:
            for problem in found.problems:
                print_error(problem)
            raise typer.Exit(EXIT_FAILURE)


def _show(found: Diagnosis) -> None:
    """Print a diagnosis as tables."""
    from ..display.terminal import in_bytes, print_line, print_table
    from ..doctor.diagnosis import amiss

    free, ray = found.disk["free_bytes"], found.ray
    machine = [
        *found.versions.items(),
        ("cores", f"{found.cores}"),
        ("memory", "unknown" if found.memory_bytes is None else in_bytes(found.memory_bytes)),
        ("devices", ", ".join(found.devices) or "unknown: torch is not installed"),
        ("disk", f"{'unknown' if free is None else in_bytes(free)} free at {found.disk['folder']}"),
    ]
    if ray["version"] is not None:
        named = f"RAY_ADDRESS {ray['RAY_ADDRESS'] or 'not set'}"
        machine.append(("Ray", f"{ray['version']}, {named}, {ray['authentication']}"))
    if "resources" in ray:
        told = "{nodes} nodes, {cpus:g} CPUs, {gpus:g} GPUs".format(**ray["resources"])
        machine.append(("Ray cluster", f"{told} at {ray['address']}"))
    versions = {name: version for need in [*found.chain, *found.extras] for name, version in need.versions.items()}
    machine += [(name, version) for name, version in sorted(versions.items())]
    print_table("this machine", ("", ""), machine)
    rows = [(need.name, amiss(need) or "ready") for need in found.chain]
    rows += [(f"extra {need.name}", amiss(need) or "ready") for need in found.extras]
    print_table("what can run", ("stage", "state"), rows)
    for need in [*found.chain, *found.extras]:
        if need.mend:  # a line of its own, so that it can be copied whole
            print_line(f"to mend {need.name}: {need.mend}")
    for note in found.notes:
        print_line(f"note: {note}")
