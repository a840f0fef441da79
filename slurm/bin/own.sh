# Sourced by the commands beside it.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

own() { # NAME: path of SLURM's own command, the next one on PATH
    type -ap "$1" | grep -vxF -m 1 "$here/$1" || { echo "error: $1: not on PATH" >&2; return 127; }
}
