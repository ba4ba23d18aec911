"""From a checkpoint to an int4 ONNX folder: the pipeline, and which matrix gets how many bits.

Imports the rooms below; only `runtime` is imported from outside.
"""
