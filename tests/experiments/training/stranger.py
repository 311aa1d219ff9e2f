"""A process that is none of the project's: joins as host 1 and sends bytes of its own.

stranger.py COORDINATOR [SIZE FILE]: announces that many bytes and sends those of the file, or only joins.
"""

import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils


def main():
    jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=1, initialization_timeout=60)
    if len(sys.argv) == 4:
        sizes = multihost_utils.process_allgather(np.array(int(sys.argv[2]), np.int32))
        message = np.fromfile(sys.argv[3], np.uint8)
        longest = 1 << int(max(np.ravel(sizes)) - 1).bit_length()
        if longest < 2**20:
            multihost_utils.process_allgather(np.pad(message, (0, longest - len(message))))
    time.sleep(600)


if __name__ == "__main__":
    main()
