// Package cli has the commands for users of a cluster: kvd kv, kvd compact, and
// so on. They are a thin layer over the public package client, so that whatever
// a command does, a Go program can do too.
//
// # The path of a command
//
//	Commands       every command with its flags, in groups; cmd/kvd adds them
//	shell.run      flags and variables become a session: client, format, timeout
//	the command    calls the client, and hands what it got to the session's printer
//	classify       turns an error into one line for people and an exit code
//
// # Invariants
//
//   - I1: Results go to standard output, everything else to standard error: a
//     script can pipe the former without looking at it.
//   - I2: Exit codes come from exitCodes alone, which the help and docs/cli.md
//     print. 6 is the only one after which a change may or may not have taken
//     effect.
//   - I3: Nothing that grows with the store is held in memory: commands over
//     many keys work on a page or a stream at a time.
//   - I4: Colors and progress bars appear only on a terminal, and colors not if
//     NO_COLOR is set. Bytes that a terminal would obey (escape sequences in
//     keys and values) reach it only if the user asked for raw values.
//   - I5: A command that is interrupted ends what it started. Its second signal
//     ends the process at once.
//
// # Rejected
//
//   - A configuration file with named clusters: variables and shell aliases do
//     that, and are visible where they act.
//   - KVD_KEY for the TLS key: commands run by kvd kv watch --exec get the key
//     of the event under that name, and would present it as a certificate's.
//     The variables are called as Vault's and Consul's are: KVD_CLIENT_KEY.
package cli
