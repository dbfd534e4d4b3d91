"""One worker: asks, runs, tells; what it keeps of a trial."""
