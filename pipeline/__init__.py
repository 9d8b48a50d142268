"""Pipeline from URLs to batches of embeddings: download, embed and read. The stages exchange data as files."""

from .compute.openmp import stop_spinning

stop_spinning()  # must run before torch is imported, which any module of this package may do first
