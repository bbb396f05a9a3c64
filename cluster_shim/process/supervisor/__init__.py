"""The small process that outlives controllers: it holds the site ports' listening sockets, the instances and their logs.

It runs on a bare interpreter (``python -I -S -E``) and imports only the standard library and this package, because its memory
counts on every edge (≤ 12 MiB) and because a broken third-party package must never take running applications with it.
"""
