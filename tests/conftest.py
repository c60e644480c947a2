"""Set-up shared by all tests: one torch thread per worker, and hypothesis examples that are the same every time."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; commands run by tests inherit it

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("cdm", deadline=None, derandomize=True, database=None)
settings.load_profile("cdm")
