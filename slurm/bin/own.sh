# Sourced by the commands beside it. Folders of such commands, also of other checkouts, leave PATH, so that nothing that
# is called from here, a site's own wrapper of sbatch for one, comes back to them; a link to one elsewhere is passed over.
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
IFS=: read -ra folders <<< "$PATH"
PATH=
for folder in "${folders[@]}"; do
    [ -e "$folder/own.sh" ] || PATH+=${PATH:+:}$folder
done

own() { # NAME: path of SLURM's own command, the next one on PATH
    local found
    while IFS= read -r found; do
        [ -e "$(dirname "$(readlink -f "$found")")/own.sh" ] || { echo "$found"; return; }
    done < <(type -ap "$1")
    echo "error: $1: not on PATH" >&2
    echo false  # is run in its place, and fails without words of the shell
}
