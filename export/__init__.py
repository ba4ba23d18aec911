"""From a checkpoint to an int4 ONNX folder that is checked against its float self, and the session that runs it."""
