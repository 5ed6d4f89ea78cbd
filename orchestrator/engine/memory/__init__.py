"""Which micro-batch and which activation checkpointing fit: what a step needs, what the device has, what was
measured, and the choice.
"""
