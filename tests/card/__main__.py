"""`python -m card MODULE ARGUMENTS...`: a module run as a program, in a process that has the device."""

import runpy
import sys

sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
