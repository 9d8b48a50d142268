"""Trained priors: sampling, configuration and files."""
