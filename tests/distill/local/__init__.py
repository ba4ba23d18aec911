"""Tests of teachers on this machine."""
