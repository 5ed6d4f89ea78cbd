"""State dictionaries in files: safetensors and PyTorch, one file or several."""
