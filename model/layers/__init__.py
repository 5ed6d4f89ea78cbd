"""The layers of the networks. Imports nothing of `model` outside this folder."""
