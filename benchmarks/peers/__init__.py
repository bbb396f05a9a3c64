"""Servers that the worker is measured beside: each serves an ONNX file as its own documentation shows, in an environment of its own.

They are no dependencies of this project: `environments.py` installs each once, below ~/.cache, with the ordinary package client.
"""
