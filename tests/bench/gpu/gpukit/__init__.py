"""What a kit does on a GPU: needs numpy, the modules of abqc beside it and a driver."""
