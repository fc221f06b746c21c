"""From a command line to a run: composition, one-line errors, sweeps, and a process per trial."""
