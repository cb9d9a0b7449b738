"""Instruments of a checkout: runtimes compared in answers and speed, and the speed of training. Not in the wheel."""
