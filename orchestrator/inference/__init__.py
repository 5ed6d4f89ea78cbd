"""A trained model and images: what `predict` and `features` do, and a program of your own can. Needs neither Ray nor
DeepSpeed.
"""
