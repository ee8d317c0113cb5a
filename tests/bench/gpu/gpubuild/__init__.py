"""How a kit is made, on any machine: needs abqc, no GPU."""
