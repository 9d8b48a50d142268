"""Diagnosis of this machine: installed packages, devices, memory, disk and Ray."""
