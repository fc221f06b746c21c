"""What writes the documentation and assets of this repository: `make demo`, `make reference`, `make study`."""
