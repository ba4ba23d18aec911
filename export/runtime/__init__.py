"""Runs exported folders with numpy, onnxruntime and psutil alone, so that an edge box needs no torch."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads it when a file below first imports it
