"""Diagnosis of the local machine: installed packages, devices, memory, disk and Ray."""
