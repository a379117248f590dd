# Completion of namefs for fish. Install as /usr/share/fish/vendor_completions.d/namefs.fish.

set -l commands history list mount rename status umount which
set -l guest_commands history list rename which

complete -c namefs -f
complete -c namefs -s h -l help -d 'show help'

complete -c namefs -n "not __fish_seen_subcommand_from $commands" -l version -d 'show the version'
complete -c namefs -n "not __fish_seen_subcommand_from $commands" -a history -d 'list the names that a guest has had'
complete -c namefs -n "not __fish_seen_subcommand_from $commands" -a list -d 'list the guests'
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

complete -c namefs -n "__fish_seen_subcommand_from $guest_commands" -a '(namefs list 2>/dev/null | cut -f1)' -d guest
complete -c namefs -n '__fish_seen_subcommand_from which' -F
