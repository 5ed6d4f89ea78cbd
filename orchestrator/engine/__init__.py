"""One training step on one device: DeepSpeed, the optimizer, memory. Imports `job` and `wording`, but no
Ray: the step can be measured alone.
"""
