"""Models' files: blobs named by their sha256, kept under a byte budget, pulled hop by hop, put together into model folders.

    blobs     what is on this disk: `BlobStore`, its index, holds and budget
    incoming  one blob that is being received: resumable, hashed as it flows, visible only when it is right
    chunks    a blob in chunks of 1 MiB, each with its digest, and which of them are here (pure); `manifests` keeps them on the disk
    wire      what asker and holder say to each other over a byte stream
    sharing   what of a blob other blobs on this disk hold already
    transfer  `fetch_blob`: one pull for all who ask at once, from the nearest ancestor that gives it; `pace` says how fast and when
    serving   `serve_blob`: from this disk, or chunk by chunk as it comes
    folders   `materialise`: a model version as a folder that a worker reads

A blob never changes: its name is its content. So there is nothing to invalidate, and any copy from anywhere will do.
"""

from cluster_controller.models.blobs import BlobReader, BlobStore, WrongDigest
from cluster_controller.models.folders import discard_folder, materialise
from cluster_controller.models.serving import serve_blob
from cluster_controller.models.transfer import fetch_blob

__all__ = ["BlobReader", "BlobStore", "WrongDigest", "discard_folder", "fetch_blob", "materialise", "serve_blob"]
