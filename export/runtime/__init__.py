"""An exported folder, run: numpy, onnxruntime and psutil alone, so that an edge box needs no torch."""
