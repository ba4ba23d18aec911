"""Exports a checkpoint as an int4 ONNX folder: the pipeline, and how many bits each matrix gets.

It imports the rooms below; from outside only `runtime` is imported.
"""
