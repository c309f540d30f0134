"""Settings of the whole suite."""

import torch

# Tiny tensors gain nothing from a second thread, and threads that wait for a busy core make a test 30 times slower.
torch.set_num_threads(1)
