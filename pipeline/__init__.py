"""Pipeline that turns URLs into batches of embeddings: download, embed and read. The stages exchange data as files."""

from .compute.openmp import stop_spinning

stop_spinning()  # must run before any module of this package imports torch
