"""Engines that spread a job over machines: Ray's workers, Ray's vLLM processor, and parts that are merged again."""
