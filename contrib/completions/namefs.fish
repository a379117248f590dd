# Completion of namefs for fish. Install as /usr/share/fish/vendor_completions.d/namefs.fish.

set -l commands adopt history list logs mount release rename status umount which
set -l guest_commands history list rename which

complete -c namefs -f
complete -c namefs -s h -l help -d 'show help'

complete -c namefs -n "not __fish_seen_subcommand_from $commands" -l version -d 'show the version'
complete -c namefs -n "not __fish_seen_subcommand_from $commands" -a adopt -d 'move a guest\'s files to where no name matters'
complete -c namefs -n "not __fish_seen_subcommand_from $commands" -a release -d 'move a guest\'s files back to where they were adopted from'
complete -c namefs -n "not __fish_seen_subcommand_from $commands" -a history -d 'list the names that a guest has had'
complete -c namefs -n "not __fish_seen_subcommand_from $commands" -a list -d 'list the guests'
complete -c namefs -n "not __fish_seen_subcommand_from $commands" -a logs -d 'print the log of a guest\'s whole life'
complete -c namefs -n "not __fish_seen_subcommand_from $commands" -a mount -d 'mount the view and serve it'
complete -c namefs -n "not __fish_seen_subcommand_from $commands" -a rename -d 'rename a guest that is off'
complete -c namefs -n "not __fish_seen_subcommand_from $commands" -a status -d 'tell how the daemon is'
complete -c namefs -n "not __fish_seen_subcommand_from $commands" -a umount -d 'unmount the view; the daemon then ends'
complete -c namefs -n "not __fish_seen_subcommand_from $commands" -a which -d 'tell whose a path is, or where a guest\'s files are'

complete -c namefs -n "__fish_seen_subcommand_from $commands" -l config -r -F -d 'read another configuration file'
complete -c namefs -n "__fish_seen_subcommand_from status $guest_commands" -l json -d 'print JSON, for programs'

complete -c namefs -n '__fish_seen_subcommand_from mount' -s c -l connect -x -a 'qemu:///system qemu:///session' -d 'the libvirt to show'
complete -c namefs -n '__fish_seen_subcommand_from mount' -s o -l options -x -d 'mount options'
complete -c namefs -n '__fish_seen_subcommand_from mount' -s v -l verbose -d 'log what happens in detail'
complete -c namefs -n '__fish_seen_subcommand_from mount umount' -a '(__fish_complete_directories)'

complete -c namefs -n '__fish_seen_subcommand_from adopt' -l disks -d 'disk images too'
complete -c namefs -n '__fish_seen_subcommand_from adopt' -l recover -d 'only finish or undo what was interrupted'
complete -c namefs -n '__fish_seen_subcommand_from adopt release' -l dry-run -d 'print each step instead of doing it'
complete -c namefs -n "__fish_seen_subcommand_from adopt release $guest_commands" -a '(namefs list 2>/dev/null | cut -f1)' -d guest
complete -c namefs -n '__fish_seen_subcommand_from which' -F
complete -c namefs -n '__fish_seen_subcommand_from logs' -s f -l follow -d 'go on with what is written'
complete -c namefs -n '__fish_seen_subcommand_from logs' -s n -l lines -x -d 'begin with the last lines'
complete -c namefs -n '__fish_seen_subcommand_from logs' -l since -x -d 'begin with what is not older'
complete -c namefs -n '__fish_seen_subcommand_from logs' -a '(namefs list 2>/dev/null | cut -f1)' -d guest
