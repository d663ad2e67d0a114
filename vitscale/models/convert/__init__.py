"""Public weights: big_vision `.npz`, timm and Hugging Face `safetensors`, our own files, and StableHLO for serving.

A format is a list of `Tensor`s (`tensors.py`): which of our parameters each foreign array holds, and both directions of
the layout change. Import checks the file's shapes against that list before it reads an array; export walks it back.
"""
