// Package reply has the text of kvd's answers over HTTP: pairs and results in JSON,
// and the one table that turns errors into codes and statuses. Every route uses it,
// and so do the streams that answer line by line, so that the same thing always looks
// the same.
//
// # What an error becomes
//
// An error reaches a client with its reason. An *api.Error has its code and text already;
// an outcome of the store has its code in a table here, and its detail from the store,
// which knows the numbers; an error that neither knows is a bug, which is answered with
// 500 and a text that tells nothing about the data. A status follows from the code alone
// (Status), so that two routes cannot give the same error two statuses.
//
// # Text
//
// Text is appended to a buffer of the caller, because encoding/json costs several
// times as much, and replaces bytes that are not UTF-8. A key or a value that is not
// valid UTF-8 appears as key_base64 or value_base64 instead. Memory is claimed for a value
// and for its text (Read). Only what is read shows how much that is, so a value that finds
// no room is dropped before the claim waits, and is read again.
package reply
