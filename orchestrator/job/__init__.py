"""What a job file may say, and the one-line errors of one that is wrong. It imports `redact` and `wording`, and neither
torch nor Ray.
"""
