"""Devices, threads, and worker processes: this process, local ones, or a Ray cluster."""
