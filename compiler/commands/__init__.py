"""The commands, one file each.

A command has NAME, SUMMARY, EXAMPLES, add_arguments(parser) and run(args), the exit code.
A command's module docstring is the description that `abqc COMMAND --help` prints. Commands import
what they need when they run, so that `abqc --help` and `abqc inspect` need neither MLIR nor numpy.
"""

from abqc.compiler.commands import bench, compile, doctor, eval, generate, inspect, opt, run, tune

ALL = (compile, run, generate, bench, inspect, eval, tune, opt, doctor)
