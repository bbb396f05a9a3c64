"""Models' files: blobs named by their sha256, kept under a byte budget, pulled hop by hop, put together into model folders.

    blobs     what is on this disk: `BlobStore`, its index, holds and budget
    incoming  one blob that is being received: resumable, hashed as it flows, visible only when it is right
    transfer  the chunk protocol over a byte stream: `serve_blob` and `fetch_blob`; one pull for all who ask at once
    folders   `materialise`: a model version as a folder that a worker reads

A blob never changes: its name is its content. So there is nothing to invalidate, and any copy from anywhere will do.
"""

from cluster_controller.models.blobs import BlobReader, BlobStore, WrongDigest
from cluster_controller.models.folders import discard_folder, materialise
from cluster_controller.models.transfer import fetch_blob, serve_blob

__all__ = ["BlobReader", "BlobStore", "WrongDigest", "discard_folder", "fetch_blob", "materialise", "serve_blob"]
