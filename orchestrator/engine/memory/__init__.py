"""Which micro-batch and which activation checkpointing fit: what a step needs by arithmetic and when measured, what the
device has, and the choice.
"""
