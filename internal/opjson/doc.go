// Package opjson reads operations, and the other JSON documents of requests,
// from untrusted input.
//
// # Algorithm
//
// One recursive-descent reader, scan, makes a single pass over the text. At
// each place it knows which value to expect, so it builds no tree: an operation
// is read directly into a command of the store, a transaction with all that it
// contains likewise, a document directly into the fields of a struct.
// Strings without escapes are returned as slices of the input; the others are
// assembled in a buffer that the Parser keeps. Reading an ordinary line of a
// batch allocates nothing.
//
// The reader does not record the path to the current value. It notes only the
// offset of a mistake, and pathOf derives the path (then[3].put.key) by walking
// the text before that offset a second time. Valid input pays nothing for it.
//
// A mistake in the content, such as an unknown field, is found before the rest
// of the text has been read. The rest is then checked for mistakes in the
// syntax, because the reader of a stream must know which kind it has: a line
// with the wrong content fails alone, but after a line that is not JSON nobody
// can tell where the next operation begins.
//
// # Invariants
//
//	P1  Accepted text is valid JSON (RFC 8259) in valid UTF-8, nested at most
//	    MaxDepth levels.
//	P2  An error wraps ErrSyntax if and only if the text violates P1.
//	P3  No accepted object has a duplicate field, or a field that is not
//	    documented in exactly that spelling. Escapes in names are decoded before
//	    names are compared.
//	P4  Bytes are never replaced. A string that does not stand for a sequence of
//	    bytes (it has an unpaired surrogate) is refused.
//	P5  A field that is null counts as absent.
//	P6  Memory is at most twice the length of the text, and a few hundred bytes
//	    for each operation of a transaction, of which the limits allow few. Time
//	    is linear in the length, and for the search of writes that collide at
//	    most quadratic in their number.
//	P7  No accepted transaction can write a key twice (see checkWrites).
//
// FuzzParse and FuzzDecode check P1 to P5 and P7 against readers built on
// encoding/json.
//
// # Rejected alternatives
//
// encoding/json accepts duplicate fields (the last one wins) and names in any
// case, replaces invalid UTF-8, and does not report where most mistakes are.
// Working around that took three passes and about 60 times as long per line.
// Its second version would do, but is still an experiment in Go 1.26.
//
// A fast reader for common lines with a strict one behind it, as this package
// once was, is two sets of rules that have to be kept equal.
package opjson
