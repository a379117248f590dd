# Completion of namefs for fish. Install as /usr/share/fish/vendor_completions.d/namefs.fish.

set -l commands adopt check history links list logs migrate-xml mount ps release rename status umount which
set -l none "not __fish_seen_subcommand_from $commands"
set -l guests '(namefs list 2>/dev/null | cut -f1)'

complete -c namefs -f
complete -c namefs -s h -l help -d 'show help'

complete -c namefs -n $none -l version -d 'show the version'
complete -c namefs -n $none -a adopt -d 'move a guest\'s files to where no name matters'
complete -c namefs -n $none -a check -d 'compare libvirt, index, store, logs and view'
complete -c namefs -n $none -a history -d 'list the names that a guest has had'
complete -c namefs -n $none -a links -d 'write the view as a tree of symlinks'
complete -c namefs -n $none -a list -d 'list the guests'
complete -c namefs -n $none -a logs -d 'print the log of a guest\'s whole life'
complete -c namefs -n $none -a migrate-xml -d 'print a guest\'s definition for the target of a local migration'
complete -c namefs -n $none -a mount -d 'mount the view and serve it'
complete -c namefs -n $none -a ps -d 'list the guests that run, with their processes'
complete -c namefs -n $none -a release -d 'move a guest\'s files back to where they were adopted from'
complete -c namefs -n $none -a rename -d 'rename a guest'
complete -c namefs -n $none -a status -d 'tell how the daemon is'
complete -c namefs -n $none -a umount -d 'unmount the view; the daemon then ends'
complete -c namefs -n $none -a which -d 'tell whose a path is, or where a guest\'s files are'

complete -c namefs -n "__fish_seen_subcommand_from $commands" -l config -r -F -d 'read another configuration file'
complete -c namefs -n '__fish_seen_subcommand_from check history list ps rename status which' -l json -d 'print JSON, for programs'

complete -c namefs -n '__fish_seen_subcommand_from adopt' -l disks -d 'disk images too'
complete -c namefs -n '__fish_seen_subcommand_from adopt' -l recover -d 'only finish or undo what was interrupted'
complete -c namefs -n '__fish_seen_subcommand_from adopt release' -l dry-run -d 'print each step instead of doing it'
complete -c namefs -n '__fish_seen_subcommand_from check' -l repair -d 'mend what cannot lose anything'
complete -c namefs -n '__fish_seen_subcommand_from links' -l watch -d 'keep it current'
complete -c namefs -n '__fish_seen_subcommand_from logs' -s f -l follow -d 'go on with what is written'
complete -c namefs -n '__fish_seen_subcommand_from logs' -s n -l lines -x -d 'begin with the last lines'
complete -c namefs -n '__fish_seen_subcommand_from logs' -l since -x -d 'begin with what is not older'
complete -c namefs -n '__fish_seen_subcommand_from migrate-xml' -l persistent -d 'the one that the guest is started by'
complete -c namefs -n '__fish_seen_subcommand_from mount' -s c -l connect -x -a 'qemu:///system qemu:///session' -d 'the libvirt to show'
complete -c namefs -n '__fish_seen_subcommand_from mount' -s o -l options -x -d 'mount options'
complete -c namefs -n '__fish_seen_subcommand_from mount' -s v -l verbose -d 'log what happens in detail'
complete -c namefs -n '__fish_seen_subcommand_from rename' -l swap -d 'two guests change names'
complete -c namefs -n '__fish_seen_subcommand_from rename' -l cancel -d 'take back what is pending'
complete -c namefs -n '__fish_seen_subcommand_from which' -l pid -x -a '(namefs ps 2>/dev/null | cut -f1,5)' -d 'process ID of a guest\'s QEMU'

complete -c namefs -n '__fish_seen_subcommand_from links mount umount' -a '(__fish_complete_directories)'
complete -c namefs -n '__fish_seen_subcommand_from which' -F
complete -c namefs -n '__fish_seen_subcommand_from adopt history list logs migrate-xml release rename which' -a $guests -d guest
