// Package dialect speaks the HTTP of the systems that kvd descends from, so that their
// own commands work against kvd: those of raftd, the reference server of goraft, and
// of riot, a store on hashicorp/raft. What etcd's raftexample speaks is kvd's short
// form, which package httpapi serves itself.
//
// A dialect is a table of Routes. Package httpapi adds them to its own and carries the
// requests out like all others: the same checks, limits, deadlines, and metrics apply.
// It calls a Route with a Call, which has the request. The Route asks Keys and Cluster
// for what it needs and writes the answer in the words of its system.
//
// Invariants:
//
//	D1  A dialect has no keys of its own: /db/foo and /riot?key=foo are the key foo
//	    of every other interface.
//	D2  Success means the same as everywhere in kvd: a write is committed and
//	    applied, a read is linearizable unless it asks not to be. Where the original
//	    claimed success too early, or ignored a failure, kvd answers with an error.
//	D3  Errors have kvd's statuses, because 503 (nothing was done) and 504 (unknown)
//	    decide whether a client may repeat the request. Only their form is the
//	    dialect's.
//
// Rejected: a proxy in front of the server that rewrites requests into those of /v1 and
// their answers back. It would parse documents that this process has just written, and
// metrics and logs would not tell one dialect from another.
package dialect
