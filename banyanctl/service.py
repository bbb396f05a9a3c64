"""The command line's only call sites into the controller's own code: create, join, run, leave.

Everything else that `banyan` does goes through a controller's API. Nothing here loads typer, click or rich: `banyan run` is
the long-lived process, and what it loads it keeps.
"""
