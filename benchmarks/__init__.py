"""Speed, as ratios: both sides in one run on one machine, each printed with its bound. `python -m benchmarks`."""
