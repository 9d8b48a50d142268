"""The pipeline from URLs to batches of embeddings: download, embed and read, joined by files on disk."""

from .compute.openmp import stop_spinning

stop_spinning()  # here, since any module of the package may be the first to import torch
