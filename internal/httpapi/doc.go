// Package httpapi is kvd's HTTP contract. It turns requests into reads and commands,
// and their outcomes into answers. openapi.yaml describes all of it.
//
// # The path of a request
//
// Server.ServeHTTP makes an exchange, which carries the request and its answer. The
// router finds the route on the escaped path; a browser.Guard refuses what a web
// page may have caused; package door finds out who sent it, and holds the answer back
// until somebody has judged whether they may have it; the query is checked against the
// parameters that the method takes; the request gets a place, if need be once its body has
// arrived. Then the handler runs. It answers, or returns an error, which becomes a problem
// document.
//
// What stands by itself has a package: parameters and conditions (param), the places where
// listings continue (cursor), streams of operations and of events (batch, feed), the
// text of answers (reply), and the routes of older systems (dialect).
//
// Handlers reach the node through the small interfaces in ports.go. httpapi takes
// types, constants and errors from package kvstore, but calls none of its functions,
// so that tests can run it without a cluster.
//
// # Invariants
//
//	H1  A path is decoded exactly once and never cleaned: every sequence of bytes is
//	    a key, and no two keys are confused. Routes are matched on the escaped
//	    path, so a key cannot pretend to be a route.
//	H2  A request that says something kvd does not understand (an unknown or
//	    repeated parameter, an unknown field, a header of a later version) is
//	    refused, never carried out as if it had not been said.
//	H3  Errors become answers in one place (reply.Problem), and get their status
//	    from one table (reply.Status). An error that the table does not know is a
//	    bug: it is logged, and answered with 500 and the id under which it was logged.
//	H4  An answer that breaks off never looks complete: once the header has been
//	    sent, an error closes the connection.
//	H5  Everything a client makes the node wait for or hold has a bound: a deadline
//	    for each read and write, a limit for each body, a place for each request that
//	    is being handled, and memory claimed for what it holds (package budget). A
//	    client that neither sends nor reads has no place. Probes need none, so a busy
//	    node still answers its supervisor.
//	H6  Nothing that a client chooses (keys, values, queries, methods that do not
//	    exist) appears in the log or as the label of a metric.
//
// # Rejected alternatives
//
// http.ServeMux cleans paths and redirects, which violates H1. encoding/json for
// answers with data costs several times as much as appending to a buffer, and
// replaces bytes that are not UTF-8; documents without data do use it. A
// context.WithTimeout for each request costs more than parsing it, hence pace.Deadlines.
package httpapi
