"""From kernels to an artifact's data: PTX, machine code, the kernels that every artifact has."""
