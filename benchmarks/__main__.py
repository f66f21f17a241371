"""`python -m benchmarks`; what it does is elsewhere, where processes that it starts find it."""

import sys

from benchmarks import gpu, runner

if __name__ == "__main__":
    if sys.argv[1:2] == ["gpu"]:
        gpu.main(sys.argv[2:])
    else:
        runner.main()
