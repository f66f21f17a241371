"""`python -m benchmarks`; what it does is elsewhere, where processes that it starts find it."""

from benchmarks.runner import main

if __name__ == "__main__":
    main()
