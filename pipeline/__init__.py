"""From URLs to batches of embeddings: download, embed, read, and the on-disk contract that joins them."""

from .compute.openmp import stop_spinning

stop_spinning()  # here, since a module of ours may be the first to import torch
