// Package reply has the text of kvd's answers over HTTP: pairs and results in JSON,
// and the one table that turns errors into codes and statuses. Every route uses it,
// and so do the streams that answer line by line, so that the same thing always looks
// the same.
//
// Text is appended to a buffer of the caller, because encoding/json costs several
// times as much, and replaces bytes that are not UTF-8.
package reply
