"""The PTX machine: executes PTX text on the CPU, checked, with numpy."""
