"""Set-up shared by all tests: one torch thread per worker, hypothesis examples that are the same every time, and GPU
kernels in Triton's interpreter where there is no GPU."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; commands run by tests inherit it

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported, which torch's optimisers do

torch.set_num_threads(1)
settings.register_profile("cdm", deadline=None, derandomize=True, database=None)
settings.load_profile("cdm")
