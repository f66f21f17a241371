"""Train one model in several processes, each on images of its own."""

import sys

import numpy as np
import torch
from torch import distributed

from skdcgmm import DCGMMEstimator

distributed.init_process_group()
rank, n_processes = distributed.get_rank(), distributed.get_world_size()
if torch.cuda.is_available():
    torch.cuda.set_device(rank % torch.cuda.device_count())

X = np.load(sys.argv[1], mmap_mode="r")
shard = np.array_split(X, n_processes)[rank]
est = DCGMMEstimator(10, max_epochs=1, distributed=True, random_state=0).fit(shard)
mean, count = est.score(shard), len(shard)
print(f"process {rank}: {count} images, mean log density {mean:.2f}", flush=True)
distributed.destroy_process_group()
