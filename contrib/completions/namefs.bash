# Completion of namefs for bash.
# Install as /usr/share/bash-completion/completions/namefs, or source it.

_namefs() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local command="" word words="" places=0
    local -i at
    for ((at = 1; at < COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        case $word in
            --config | --since | -n | --lines | -c | --connect | -o | --options | --pid) at+=1 ;;
            -*) ;;
            *) if [[ $command ]]; then places=$((places + 1)); else command=$word; fi ;;
        esac
    done
    COMPREPLY=()

    case $previous in
        --config)
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
            return ;;
        --pid)
            mapfile -t COMPREPLY < <(compgen -W "$(namefs ps 2>/dev/null | cut -f1)" -- "$current")
            return ;;
        --since | -n | --lines | -c | --connect | -o | --options) return ;;
    esac
    if [[ $current == -* ]]; then
        case $command in
            "") words="--help --version" ;;
            adopt) words="--config --disks --dry-run --help --recover" ;;
            check) words="--config --help --json --repair" ;;
            links) words="--config --help --watch" ;;
            logs) words="--config --follow --help --lines --since" ;;
            migrate-xml) words="--config --help --persistent" ;;
            mount) words="--config --connect --help --options --verbose" ;;
            release) words="--config --dry-run --help" ;;
            rename) words="--cancel --config --help --json --swap" ;;
            umount) words="--config --help" ;;
            which) words="--config --help --json --pid" ;;
            *) words="--config --help --json" ;;
        esac
    elif [[ ! $command ]]; then
        words="adopt check history links list logs migrate-xml mount ps release rename status umount which"
    fi
    if [[ $words ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
        return
    fi
    case $command:$places in
        links:0 | mount:0 | umount:0)
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
        which:0)
            if [[ $current == */* ]]; then
                compopt -o filenames
                mapfile -t COMPREPLY < <(compgen -f -- "$current")
            else
                _namefs_guests "$current"
            fi ;;
        adopt:* | logs:* | release:* | list:0 | history:0 | migrate-xml:0 | rename:0 | rename:1)
            _namefs_guests "$current" ;;
    esac
}

_namefs_guests() {
    # What was typed may hold backslashes before blanks; the names come without, and get them.
    local typed=${1//\\/} name
    while IFS= read -r name; do
        [[ $name == "$typed"* ]] && COMPREPLY+=("$(printf %q "$name")")
    done < <(namefs list 2>/dev/null | cut -f1)
}

complete -F _namefs namefs
