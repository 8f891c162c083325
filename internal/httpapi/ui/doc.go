// Package ui has the web page that a node serves at /ui/: files written by hand, which
// the binary contains, and the form in which they are answered.
//
// # The path of data
//
// The page is a client like any other. A browser gets index.html, one style sheet, and
// ES modules from here. The modules then send the requests of the HTTP contract, to the
// node that served them, and nothing else: the page has no private interface.
//
// # Invariants
//
//	U1  The page loads nothing from elsewhere and runs nothing but its own files. The
//	    Content-Security-Policy of every answer says so, without 'unsafe-inline', and
//	    with Trusted Types, so that no value that is stored can become markup.
//	U2  The files have less than 100 KiB in total, compressed (TestSize).
//	U3  What a browser keeps is checked before each use: an ETag is a hash of the content,
//	    so a newer binary is a newer page at the next load.
//	U4  A page in mode Read offers no changes. That is a courtesy to people; package
//	    httpapi refuses the changes of web pages, whatever the page offers.
//
// # Rejected alternatives
//
// A framework with a build step would have made the binary depend on a second tool
// chain, and the page on hundreds of packages that nobody here reads. Rendering on the
// server would have needed routes that no other client has. Names with a hash, which
// browsers need not check again, would have needed a build step too; a check costs one
// round trip to a node that is near.
package ui
