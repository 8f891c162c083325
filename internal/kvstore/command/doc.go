// Package command is the language of the store: what it can be told (Command, Txn),
// what it answers (Result), what it tells watchers (Change), and the settings that decide
// outcomes. It has the encoding of commands in the log, and executes nothing; package
// kvstore does, and names the types as its own.
//
// A command in the log must mean the same to every replica, of whatever version. So there
// is one encoding for each command: Decode refuses whatever Encode does not produce, up to
// the last byte (FuzzDecode). A replica stops at what it cannot decode, since skipping it
// would make replicas diverge. A new operation or flag is proposed only once every
// member has announced a version that knows it.
package command
