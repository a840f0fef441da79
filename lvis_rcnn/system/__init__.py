"""What is true without LVIS: the command line, files, downloads and this machine.

cli         how every step starts, reports and fails: one parser, one log, one line for an error
files       files and folders that appear whole or not at all; arrays that grow on disk
download    files arrive whole: resumed, checked, unpacked
provenance  what produced a number: code, packages, device
machine     what a process has of a machine or a SLURM allocation; whether another process is there
gpus        GPUs of its own for a command, where no scheduler gives them
"""
