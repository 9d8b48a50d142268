"""Devices, CPU threads, and workers in this process or on a Ray cluster."""
