"""Everything that does not know LVIS: the command line, files, downloads and this machine.

cli         how every step starts, logs and fails: one parser, one log, one line per error
files       files and folders that appear whole or not at all; arrays that grow on disk
encodings   a text file's first bytes: a mark to skip, or that it is another kind of file
download    downloads a file: resumed, checked, unpacked
provenance  versions of the code and of the libraries
machine     the cores and GPUs of a process, on a machine or in a SLURM job; whether a process still runs
gpus        runs a command on GPUs of its own where no scheduler assigns them
"""
