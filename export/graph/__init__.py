"""Writes the ONNX graph of a dense decoder, node by node."""
