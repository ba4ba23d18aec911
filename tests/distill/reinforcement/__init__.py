"""Tests of the reinforcement of students."""
