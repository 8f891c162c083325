// Package authrpc implements etcd's Auth service: users, roles, and logins. It uses the
// tables of package rights, which the HTTP API changes, too.
//
// # An edit
//
// A call of etcd's API changes one detail of a user or role, but a change of the tables
// replaces a whole entry. So an edit reads the tables, validates the request, and proposes
// the new entry on condition that the revision is still the one it read. If another change
// came first, the proposal has no effect and the edit starts over, so no edit undoes another.
// The edits of one node run one at a time, since all but one would have to start over.
//
// What kvd's roles have and etcd's do not (capabilities, permissions on locks) is neither
// shown nor changed here.
//
// # Invariants
//
//	U1  An acknowledged edit is in the tables, whatever else is edited concurrently on this
//	    node or others (TestConcurrentEditsAreKept).
//	U2  An edit changes nothing but its own detail (TestEditsKeepWhatEtcdDoesNotKnow).
//	U3  Calls are linearizable on every node: each reads the tables after a barrier.
//	U4  A password is hashed before it is proposed, and is in no log.
//
// Package etcdapi checks who may call.
package authrpc
