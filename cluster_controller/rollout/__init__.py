"""Rollout: a new version of an Application goes out in waves, is judged by its health, and stops or goes back where it fails.

`waves` decides (pure): which targets belong to which wave, which are due, when a wave is done, and when a rollout has failed.
`revision` says what one version is, and what a target that is not due yet is told meanwhile (pure). `depends` orders first starts
(pure). `keeping` remembers between two settlings, in the commit of the Works themselves; `history` keeps versions to go back to.

Each controller does this among its direct children and its own cluster, for what it was given. Only the origin goes back by itself.
"""
